"""Makes the tables of a report from records."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expunge.records import Provenance, Role, Score
from expunge.report.aims import Aim, tasks_of
from expunge.report.changes import Changes, cost_cells
from expunge.report.checks import comparable
from expunge.report.claims import Claim
from expunge.report.disruption import disruption, measured
from expunge.report.effects import KEPT, Effects
from expunge.report.glossary import meaning, task_label
from expunge.report.gold import Against
from expunge.report.groups import TaskMetric, to_go
from expunge.report.read import RunRecord
from expunge.report.tables import DASH, Cell, Column, Table, score_cell, tint_of

ARROWS = {True: "↑", False: "↓", None: ""}
ROLES: dict[Role | None, str] = {"forget": "to forget", "retain": "to keep", "control": "control: never taught"}
"""Text below the name of a task."""
MOST_COLUMNS = 4
"""Largest number of forget tasks in the summary of a suite."""
BOUNDED = ("share", "effect")
"""Styles of metrics whose change against the original is a share, and can be coloured."""


def summary_table(
    suite: str,
    models: Sequence[RunRecord],
    references: int,
    aim: Aim | None,
    effects: Mapping[str, Effects],
    against: Against | None,
    cost: Changes | None,
    instead: Mapping[str, Sequence[str]],
) -> Table | None:
    """Makes one row per model: the verdict if there is gold, the two main figures, the scores behind them, suite-wide scores,
    and mean and worst side effects. None if the suite has none of these.

    references   number of models at the top that are original or gold
    instead      run -> the tasks that it was to forget instead of the aim's
    """
    shown = _summed_up(suite, models, aim)
    if not shown:
        return None
    columns = [Column("model")]
    relative = next((e for e in effects.values() if e.gone.metric in ("forget_effect", "relative_drop")), None)
    figures = [relative.gone.metric, relative.kept.metric][: 2 if aim and aim.stays else 1] if relative else []
    columns += [Column("verdict")] if against else []
    columns += [Column(meaning(metric).label, True, meaning(metric).sentence) for metric in figures]
    columns += [_titled(task, metric) for task, metric in shown]
    columns += (
        [Column("mean change of what was to stay", True), Column("worst change", True), Column("worst task")] if cost else []
    )
    rows = []
    for i, model in enumerate(models):
        cells = [Cell(model.name)]
        if against:
            cells.append(Cell(_verdict(model, i < references, against, effects, instead)))
        for place in range(len(figures)):
            score = effects[model.name][place] if model.name in effects else None
            cells.append(score_cell(score, strong=True) if score else Cell(DASH, note="it was to forget something else"))
        cells += [score_cell(model.score(suite, task, metric)) for task, metric in shown]
        rows.append((*cells, *(cost_cells(cost, model.name) if cost else ())))
    caption = "What is left of what was to go, and what it cost, with 95 % intervals."
    return Table(f"{suite}-summary", caption, tuple(columns), tuple(rows), apart=references)


def _titled(task: str, metric: str) -> Column:
    title = meaning(metric).label + ("" if task == "suite" else f", {task_label(task)}")
    return Column(title, True, meaning(metric).sentence)


def _summed_up(suite: str, models: Sequence[RunRecord], aim: Aim | None) -> list[tuple[str, str]]:
    """Returns (task, metric) of the scores in the summary: the aim's two, other tasks to forget, and the whole suite."""
    there = rows_of(suite, models)
    pairs: list[tuple[str, str]] = []
    if aim:
        pairs += [aim.gone, *([aim.stays] if aim.stays else [])]
        pairs += [(aim.gone.task, "extraction_strength")]
    forgotten = {task for model in models for task in tasks_of(model, suite, "forget")}
    pairs += [asked for asked in to_go(suite, models) if not forgotten or asked.task in forgotten][:MOST_COLUMNS]
    pairs += [pair for pair in there if pair[0] == "suite"]
    return [pair for pair in dict.fromkeys((task, metric) for task, metric in pairs) if pair in there]


def _verdict(
    model: RunRecord, reference: bool, against: Against, effects: Mapping[str, Effects], instead: Mapping[str, Sequence[str]]
) -> str:
    if reference:
        return "never saw the forget set" if model.name == "gold" else "before unlearning"
    if model.name in instead:
        return f"was to forget {', '.join(map(task_label, instead[model.name]))}"
    words = against.verdicts[model.name].words
    kept = effects[model.name].kept
    return f"{words}, retain damaged" if kept.metric == "retain_kept" and kept.value is not None and kept.value < KEPT else words


def score_table(suite: str, models: Sequence[RunRecord], original: RunRecord | None) -> Table:
    """Makes the table of every score of a suite: one row per task and metric, one column per model, coloured by the change
    against the original. If no prompt was cut, this is said once instead of in a row per task."""
    rows = []
    uncut = ""
    for task, metric in rows_of(suite, models):
        scores = [model.score(suite, task, metric) for model in models]
        if metric == "prompt_cut" and all(s is None or s.value == 0 for s in scores):
            uncut = " No prompt was cut where no row says so."
            continue
        before = original.score(suite, task, metric) if original else None
        direction = ARROWS[next((s.higher_is_better for s in scores if s), None)]
        alike = [
            original is not None and m is not original and comparable(m, original, suite, TaskMetric(task, metric))
            for m in models
        ]
        tints = [tint_of(change(s, before), s) if same else None for same, s in zip(alike, scores, strict=True)]
        cells = [score_cell(s, tint=tint) for s, tint in zip(scores, tints, strict=True)]
        role = next((ROLES[s.role] for s in scores if s and s.role in ROLES), None)
        rows.append((Cell(task_label(task), role), Cell(f"{meaning(metric).label}\u00a0{direction}".strip()), *cells))
    caption = f"Every score of the suite {suite}, with 95 % intervals. ↑ higher is better, ↓ lower is better.{uncut}"
    columns = (Column("task"), Column("metric"), *(Column(model.name, True) for model in models))
    return Table(f"{suite}-scores", caption, columns, tuple(rows), stub=2)


def rows_of(suite: str, models: Iterable[RunRecord]) -> list[tuple[str, str]]:
    """Returns (task, metric) in order of first appearance, a task's metrics together."""
    scores = [s for m in models if (evaluation := m.evaluation(suite)) for s in evaluation.scores]
    tasks: dict[str, dict[str, None]] = {}
    for score in scores:
        tasks.setdefault(score.task, {})[score.metric] = None
    return [(task, metric) for task, metrics in tasks.items() for metric in metrics]


def change(score: Score | None, before: Score | None) -> float | None:
    """Computes value - original, for metrics between 0 and 1."""
    if score is None or before is None or score.value is None or before.value is None:
        return None
    return score.value - before.value if meaning(score.metric).style in BOUNDED else None


def attack_table(runs: Sequence[RunRecord]) -> Table | None:
    """Makes one row per run and attack: the gain, the levels of the run and of the controls, and the budget."""
    rows = []
    for run in runs:
        for attack in run.attacks:
            gain, levels = attack.gain, {score.task: score for score in attack.scores}
            shown = score_cell(
                Score(task="suite", metric="change", value=gain.value, low=gain.low, high=gain.high, n=0)
                if gain and gain.value is not None
                else Score(task="suite", metric="change", value=None, n=0, unscored=attack.reason or "no gain was computed")
            )
            first = next(iter(attack.scores), None)
            sides = (levels.get("forget", first), levels.get("before"), levels.get("gold"), levels.get("control"))
            measure = meaning(first.metric).label if first else DASH
            cells = (
                Cell(run.name),
                Cell(attack.attack),
                Cell(measure),
                shown,
                *(score_cell(side) if side else Cell(DASH) for side in sides),
            )
            rows.append((*cells, Cell(settings(attack.budget) or DASH)))
    columns = (
        *(Column("run"), Column("attack"), Column("measure")),
        Column("gain", True, "What the attack brought back beyond its control"),
        Column("after the attack", True),
        Column("before it", True),
        Column("gold, after", True, "The same attack on the model that never saw the forget set"),
        Column("never-known facts, after", True, "The same attack on facts that the run never saw"),
        Column("budget"),
    )
    caption = (
        "Attempts to bring the knowledge back, with 95 % intervals. The gain is over gold or, without it, over never-known facts."
    )
    return Table("attacks", caption, columns, tuple(rows)) if rows else None


def settings(fields: Mapping[str, object]) -> str:
    """Formats `beta 0.1 · retain.kind kl`: fields in their own order, without unset ones."""
    flat: list[str] = []
    for key, value in fields.items():
        if isinstance(value, Mapping):
            flat += [f"{key}.{inner}" for inner in settings(value).split(" · ") if inner]
        elif value is not None and key != "name" and (said := _plain(value)):
            flat.append(f"{key} {said}")
    return " · ".join(flat)


def _plain(value: object) -> str:
    """Formats a setting: yes or no, lists with commas, pairs inside of lists with a slash."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join("/".join(map(_plain, one)) if isinstance(one, list | tuple) else _plain(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def run_table(runs: Sequence[RunRecord], claims: Mapping[str, Claim]) -> Table | None:
    """Describes how each artifact was made: settings, steps, time, memory, and provenance that differs between the runs."""
    made = [run for run in runs if run.artifact or run.provenance]
    if not made:
        return None
    origins = [origin(run.provenance) for run in made if run.provenance]
    disrupted = any(map(measured, made))
    differing = [label for label in PROVENANCE if len({facts[label] for facts in origins}) > 1]
    rows = []
    for run in made:
        facts = origin(run.provenance) if run.provenance else {}
        artifact = run.artifact
        rows.append(
            (
                Cell(run.name),
                Cell(f"{artifact.method.get('name', DASH)}, {artifact.family}" if artifact else DASH),
                Cell(" · ".join(said for said in (settings(m) for m in _chosen(run)) if said) or DASH),
                Cell(f"{artifact.kind}, {claims[run.name].shown}" if artifact else DASH),
                Cell(str(run.steps[-1].step) if run.steps else DASH, value=run.steps[-1].step if run.steps else None),
                *([disruption(run)] if disrupted else []),
                *(_fact(run.provenance, field, write) for field, write in COSTS),
                *(Cell(facts.get(label, DASH)) for label in differing),
            )
        )
    heads = ["run", "method, family", "settings", "artifact, claim"]
    numbers = ["steps", *(["change on neutral text"] if disrupted else []), "time", "processor time", "peak memory"]
    columns = [Column(h) for h in heads] + [Column(n, True) for n in numbers] + [Column(label) for label in differing]
    return Table("runs", "How each artifact was made.", tuple(columns), tuple(rows))


SHOWN = ("learning_rate", "batch_size")
"""Settings of the training that the report names; the others are in run.yaml."""


def _chosen(run: RunRecord) -> list[dict[str, Any]]:
    """Returns the method's fields, and the learning rate and batch size, for each stage if there are several; a stage's layer
    too, which the fields leave open."""
    moved = run.provenance.settings if run.provenance else {}
    shown = {name.replace("_", " "): value for name, value in moved.items() if name.endswith((*SHOWN, " layer"))}
    return [*([run.artifact.method] if run.artifact else []), shown]


def _fact(provenance: Provenance | None, field: str, write: str) -> Cell:
    if provenance is None:
        return Cell(DASH, note="the run has no provenance.json")
    value = float(getattr(provenance, field))
    return Cell(duration(value) if write == "duration" else f"{value / 2**20:,.0f} MiB", value=value)


COSTS = (("wall_seconds", "duration"), ("device_seconds", "duration"), ("peak_memory_bytes", "memory"))
PROVENANCE = ("base model", "forget data", "retain data", "other data", "seed", "stopped early", "machine", "versions")


def origin(p: Provenance) -> dict[str, str]:
    """Describes where a run came from, in short texts; hashes are cut to twelve digits."""
    data = {name: f"{p.counts.get(name, 0):,} rows, sha256 {digest[:12]}" for name, digest in p.data.items()}
    others = "; ".join(f"{name}: {text}" for name, text in data.items() if name not in ("forget", "retain"))
    return {
        "base model": f"{p.base}, sha256 {p.base_sha256[:12]}",
        "forget data": data.get("forget", DASH),
        "retain data": data.get("retain", DASH),
        "other data": others or DASH,
        "seed": str(p.seed),
        "stopped early": p.stopped or DASH,
        "machine": f"{p.host}; processes: {p.processes}, threads: {p.threads}",
        "versions": ", ".join(f"{name} {version}" for name, version in {"expunge": p.expunge, **p.versions}.items()),
    }


def shared_provenance(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Describes the provenance that is the same for all runs."""
    origins = [origin(run.provenance) for run in runs if run.provenance]
    if not origins:
        return []
    same = [(label, origins[0][label]) for label in PROVENANCE if all(o[label] == origins[0][label] for o in origins)]
    return [(label, text) for label, text in same if text != DASH]


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
