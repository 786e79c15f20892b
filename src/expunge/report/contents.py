"""What the tables of a report hold: records -> tables."""

from collections.abc import Iterable, Mapping, Sequence

from expunge.records import Provenance, Score
from expunge.report.changes import Changes, cost_cells
from expunge.report.checks import comparable
from expunge.report.effects import (
    AS_IF_NEVER_LEARNED,
    FORGET,
    KEPT,
    RETAIN,
    forget_effect,
    forgot_instead,
    retain_kept,
    still_extractable,
)
from expunge.report.glossary import CLAIMS, is_forget, meaning, task_label
from expunge.report.groups import Asked, to_go
from expunge.report.read import RunRecord
from expunge.report.tables import DASH, Cell, Column, Table, score_cell

ARROWS = {True: "↑", False: "↓", None: ""}
MOST_COLUMNS = 4
"""Tasks to go, other than those of a forget set, that the summary of a suite has room for."""
BOUNDED = ("share", "effect")
"""Styles of metrics whose change against the original is a share, and so a colour."""


def verdict(effect: Score, kept: Score, extractable: bool) -> str:
    """What the two figures say in words; the limits are those of the figure's band. `extractable`: see `still_extractable`."""
    if effect.value is None:
        return "not measured"
    low, high = AS_IF_NEVER_LEARNED
    words = "still known" if effect.value < low else "over-forgotten" if effect.value > high else "as if never learned"
    if extractable and effect.value >= low:
        words += " by probability, still extractable"
    return f"{words}, retain damaged" if kept.value is not None and kept.value < KEPT else words


def lab_table(runs: Sequence[RunRecord], original: RunRecord, gold: RunRecord) -> Table:
    """One row per model: the two figures relative to original and gold, and the scores that they come from."""
    scores = [
        ("probability, forget", FORGET, "probability"),
        ("probability, retain", RETAIN, "probability"),
        ("extraction strength, forget", FORGET, "extraction_strength"),
        ("forget quality", "suite", "forget_quality"),
        ("model utility", "suite", "model_utility"),
    ]
    models = (original, gold, *runs)
    wanted = [(title, task, metric) for title, task, metric in scores if any(m.score("lab", task, metric) for m in models)]
    titles = [("forget effect", "forget_effect"), ("retain kept", "retain_kept"), *((t, m) for t, _, m in wanted)]
    rows = []
    for model in models:
        effect, kept = forget_effect(model, original, gold), retain_kept(model, original)
        instead = ", ".join(map(task_label, forgot_instead(model)))
        said = {id(original): "before unlearning", id(gold): "never saw the forget set"}.get(id(model))
        said = said or (f"was to forget {instead}" if instead else None)
        words = said or verdict(effect, kept, still_extractable(model, original, gold))
        found = [score_cell(model.score("lab", task, metric)) for _, task, metric in wanted]
        rows.append((Cell(model.name), Cell(words), score_cell(effect, strong=True), score_cell(kept, strong=True), *found))
    return Table(
        "lab-summary",
        "How far each model is from one that never learned the forget set, with 95 % intervals.",
        (Column("model"), Column("verdict"), *(Column(title, True, meaning(metric).sentence) for title, metric in titles)),
        tuple(rows),
        apart=2,
    )


def suite_summary(suite: str, models: Sequence[RunRecord], references: int, cost: Changes | None) -> Table | None:
    """One row per model: scores over the whole suite, what is left of what was to go, and what that cost on average and at worst.
    Nothing where the suite shows neither: what was kept stands at the head of its own table."""
    pairs = [(task, metric) for task, metric in rows_of(suite, models) if task == "suite" or is_forget(task)]
    pairs.sort(key=lambda pair: pair[0] != "suite")
    pairs += [asked for asked in to_go(suite, models) if asked not in pairs and not is_forget(asked.task)][:MOST_COLUMNS]
    if not pairs:
        return None
    columns = [
        Column(meaning(m).label if t == "suite" else f"{meaning(m).label}, {task_label(t)}", True, meaning(m).sentence)
        for t, m in pairs
    ]
    if cost:
        columns += [Column("mean change of what was to stay", True), Column("worst change", True), Column("worst task")]
    rows = []
    for model in models:
        cells = [score_cell(model.score(suite, t, m)) for t, m in pairs]
        rows.append((Cell(model.name), *cells, *(cost_cells(cost, model.name) if cost else ())))
    caption = f"Suite {suite}: the whole, what is left of what was to go, and what it cost, with 95 % intervals."
    return Table(f"{suite}-summary", caption, (Column("model"), *columns), tuple(rows), apart=references)


def score_table(suite: str, models: Sequence[RunRecord], original: RunRecord | None) -> Table:
    """Every score of a suite: one row per task and metric, one column per model, coloured by the change against the original.
    That no prompt was cut is said once and not in a row for each task."""
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
            original is not None and m is not original and comparable(m, original, suite, Asked(task, metric)) for m in models
        ]
        cells = [score_cell(s, tint=change(s, before) if same else None) for same, s in zip(alike, scores, strict=True)]
        rows.append((Cell(task_label(task)), Cell(f"{meaning(metric).label}\u00a0{direction}".strip()), *cells))
    caption = f"Every score of the suite {suite}, with 95 % intervals. ↑ higher is better, ↓ lower is better.{uncut}"
    columns = (Column("task"), Column("metric"), *(Column(model.name, True) for model in models))
    return Table(f"{suite}-scores", caption, columns, tuple(rows), stub=2)


def rows_of(suite: str, models: Iterable[RunRecord]) -> list[tuple[str, str]]:
    """(task, metric) in order of first appearance, a task's metrics together."""
    scores = [s for m in models if (evaluation := m.evaluation(suite)) for s in evaluation.scores]
    tasks: dict[str, dict[str, None]] = {}
    for score in scores:
        tasks.setdefault(score.task, {})[score.metric] = None
    return [(task, metric) for task, metrics in tasks.items() for metric in metrics]


def change(score: Score | None, before: Score | None) -> float | None:
    """value - original, for metrics between 0 and 1."""
    if score is None or before is None or score.value is None or before.value is None:
        return None
    return score.value - before.value if meaning(score.metric).style in BOUNDED else None


def attack_table(runs: Sequence[RunRecord]) -> Table | None:
    """One row per run, attack, task and metric, with the attack's budget."""
    rows = []
    for run in runs:
        for attack in run.attacks:
            budget = settings(attack.budget) or DASH
            for s in attack.scores:
                asked = f"{task_label(s.task)}, {meaning(s.metric).label}"
                rows.append((Cell(run.name), Cell(attack.attack), Cell(budget), Cell(asked), score_cell(s)))
    columns = (Column("run"), Column("attack"), Column("budget"), Column("score"), Column("after the attack", True))
    return Table("attacks", "Attempts to bring the knowledge back.", columns, tuple(rows)) if rows else None


def claim_rows(runs: Sequence[RunRecord]) -> list[dict[str, str]]:
    """For each claim level that occurs: which runs, what it says and what it does not."""
    levels: dict[str, list[str]] = {}
    for run in runs:
        if run.artifact:
            levels.setdefault(run.artifact.claim, []).append(run.name)
    return [
        {"level": level, "name": CLAIMS[level][0], "runs": ", ".join(names), "says": CLAIMS[level][1], "not": CLAIMS[level][2]}
        for level, names in sorted(levels.items())
    ]


def settings(fields: Mapping[str, object]) -> str:
    """`beta 0.1 · retain.kind kl`: fields in their own order, without those that are unset."""
    flat: list[str] = []
    for key, value in fields.items():
        if isinstance(value, Mapping):
            flat += [f"{key}.{inner}" for inner in settings(value).split(" · ") if inner]
        elif value is not None and key != "name":
            flat.append(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}")
    return " · ".join(flat)


def run_table(runs: Sequence[RunRecord]) -> Table | None:
    """How each artifact was made: settings, steps, time, memory, and what of the provenance differs between the runs."""
    made = [run for run in runs if run.artifact or run.provenance]
    if not made:
        return None
    origins = [origin(run.provenance) for run in made if run.provenance]
    differing = [label for label in PROVENANCE if len({facts[label] for facts in origins}) > 1]
    rows = []
    for run in made:
        facts = origin(run.provenance) if run.provenance else {}
        artifact = run.artifact
        rows.append(
            (
                Cell(run.name),
                Cell(f"{artifact.method.get('name', DASH)}, {artifact.family}" if artifact else DASH),
                Cell(settings(artifact.method) or DASH if artifact else DASH),
                Cell(f"{artifact.kind}, {artifact.claim}" if artifact else DASH),
                Cell(str(run.steps[-1].step) if run.steps else DASH, value=run.steps[-1].step if run.steps else None),
                *(_fact(run.provenance, field, write) for field, write in COSTS),
                *(Cell(facts.get(label, DASH)) for label in differing),
            )
        )
    heads = ["run", "method, family", "settings", "artifact, claim"]
    numbers = ["steps", "time", "processor time", "peak memory"]
    columns = [Column(h) for h in heads] + [Column(n, True) for n in numbers] + [Column(label) for label in differing]
    return Table("runs", "How each artifact was made.", tuple(columns), tuple(rows))


def _fact(provenance: Provenance | None, field: str, write: str) -> Cell:
    if provenance is None:
        return Cell(DASH, note="the run has no provenance.json")
    value = float(getattr(provenance, field))
    return Cell(duration(value) if write == "duration" else f"{value / 2**20:,.0f} MiB", value=value)


COSTS = (("wall_seconds", "duration"), ("device_seconds", "duration"), ("peak_memory_bytes", "memory"))
PROVENANCE = ("base model", "forget data", "retain data", "other data", "seed", "stopped early", "machine", "versions")


def origin(p: Provenance) -> dict[str, str]:
    """Where a run came from, as short texts; hashes are cut to twelve digits."""
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
    """What is the same for all runs, said once."""
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
