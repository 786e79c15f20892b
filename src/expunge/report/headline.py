"""Summarizes the report in a few sentences: what was asked, which run comes closest to gold, and what was not tested."""

from collections.abc import Mapping, Sequence

from expunge.report.aims import Aim
from expunge.report.changes import Changes
from expunge.report.effects import KEPT, Effects
from expunge.report.glossary import meaning, number, task_label
from expunge.report.gold import Against, told_by
from expunge.report.groups import score_of, to_go
from expunge.report.matrix import Matrix
from expunge.report.read import RunRecord

NAMED = 3
"""Number of runs that a sentence names; it counts the others."""


def headline(
    suite: str,
    runs: Sequence[RunRecord],
    original: RunRecord | None,
    gold: RunRecord | None,
    aim: Aim | None,
    effects: Mapping[str, Effects],
    against: Against | None,
    cost: Changes | None,
    matrices: Sequence[Matrix],
) -> tuple[str, str]:
    """Returns the first sentences, and the notes below them. The runs closest to gold come first."""
    if not runs:
        return f"Scores of the reference models on {_suite(suite)}, before any unlearning.", ""
    aimed = [run for run in runs if run.name in effects]
    if aim is None or not aimed:
        return _without_aim(suite, runs, original, cost, matrices), ""
    if against is not None and original is not None and gold is not None:
        first, second = _with_gold(aimed, aim, effects, against)
    else:
        first, second = _without_gold(aimed, original, aim, effects), _untested(original, gold)
        if cost and not matrices:
            first = f"{first} {cost.sentence([run.name for run in runs])}"
    return first, f"{second} {_drops(matrices)}".strip()


def _with_gold(runs: Sequence[RunRecord], aim: Aim, effects: Mapping[str, Effects], against: Against) -> tuple[str, str]:
    asked = f"{_count(runs, 'method')} {'were' if len(runs) != 1 else 'was'} asked to forget {_asked(runs, aim)}. "
    same = [name for name in against.indistinguishable() if name in effects]
    good = [run.name for run in runs if run.name in same and not _damaged(effects[run.name])]
    if good:
        others = f", and neither can {_list(_named(good[1:]))}" if len(good) > 1 else ""
        said = f"{good[0]} cannot be told from a model that never learned them ({_figures(effects[good[0]])}){others}."
    else:
        first = runs[0].name
        found = against.verdicts[first]
        why = f" and is distinguished from it by {told_by(found)}" if found.apart else f"; the verdict: {found.words}"
        said = f"None that kept the rest is indistinguishable from a model that never learned them. {first} comes nearest "
        said += f"({_figures(effects[first])}){why}."
    told = [
        f"{run.name}: {told_by(against.verdicts[run.name])}"
        for run in runs
        if against.verdicts[run.name].apart and not (not good and run is runs[0])
    ]
    few = [run.name for run in runs if against.verdicts[run.name].words == "too few samples"]
    untested = {run.name: reason for run in runs if (reason := against.verdicts[run.name].untested)}
    rest = [
        f"Distinguished from gold by: {'; '.join(told)}." if told else "",
        f"Too few samples to say of {_list(few)}." if few else "",
        *(f"{name} was not tested against gold: {reason}." for name, reason in untested.items()),
        _damage(runs, effects),
    ]
    return asked + said, " ".join(text for text in rest if text)


def _without_gold(runs: Sequence[RunRecord], original: RunRecord | None, aim: Aim, effects: Mapping[str, Effects]) -> str:
    """Describes how far the forget score has fallen, and what is left of the retain score."""
    asked = f"{_count(runs, 'run')} {'were' if len(runs) != 1 else 'was'} to forget {_asked(runs, aim)}."
    found = [(score.value, run) for run in runs if (score := score_of(run, aim.suite, aim.gone)) and score.value is not None]
    if not found:
        return f"{asked} None has a {meaning(aim.gone.metric).label} on it."
    value, run = min(found, key=lambda pair: pair[0])
    start = score_of(original, aim.suite, aim.gone) if original else None
    before = f" (the original: {number(aim.gone.metric, start.value)})" if start and start.value is not None else ""
    what = (
        f"{'The lowest ' if len(runs) > 1 else 'The '}{meaning(aim.gone.metric).label} left is {number(aim.gone.metric, value)}"
    )
    who = f", {run.name}'s" if len(runs) > 1 else ""
    kept = effects[run.name].kept
    share = ""
    if kept.value is not None and kept.metric == "retain_kept" and aim.stays:
        share = f", with {100 * kept.value:.0f}\u00a0% of {_task(aim.stays.task)} kept"
    return f"{asked} {what}{who}{before}{share}."


def _untested(original: RunRecord | None, gold: RunRecord | None) -> str:
    """Describes what the page cannot show."""
    said = []
    if original is None:
        said.append("What the model knew before was not given (--original), so that nothing here shows what changed.")
    if gold is None:
        said.append(
            "Whether a run can be told from a model that never saw the forget set was not tested: none was given (--gold)."
        )
    return " ".join(said)


def _damage(runs: Sequence[RunRecord], effects: Mapping[str, Effects]) -> str:
    lost = [(run.name, effects[run.name].kept.value) for run in runs if _damaged(effects[run.name])]
    named = [f"{name} ({number('retain_kept', value)} kept)" for name, value in lost if value is not None]
    return f"The retain set is damaged by {_list(named)}." if named else ""


def _damaged(effects: Effects) -> bool:
    return effects.kept.metric == "retain_kept" and effects.kept.value is not None and effects.kept.value < KEPT


def _figures(effects: Effects) -> str:
    """Formats `forget effect 1.02, retain kept 0.97`."""
    scores = [score for score in (effects.gone, effects.kept) if score.value is not None]
    return ", ".join(f"{meaning(score.metric).label} {number(score.metric, score.value or 0.0)}" for score in scores)


def _without_aim(
    suite: str, runs: Sequence[RunRecord], original: RunRecord | None, cost: Changes | None, matrices: Sequence[Matrix]
) -> str:
    """Describes a suite without a forget task, or runs that forgot different tasks."""
    lowest = _lowest(suite, runs, original) if not matrices else ""
    found = (
        [_drops(matrices)]
        if matrices
        else [text for text in (lowest, cost.sentence([r.name for r in runs]) if cost else "") if text]
    )
    return f"{_count(runs, 'run')} on {_suite(suite)}. {' '.join(found)}".strip()


def _drops(matrices: Sequence[Matrix]) -> str:
    """Describes, for each method, how much of its forget task is forgotten, and what else was lost."""
    said = [(m.method, m.sentence()) for m in matrices]
    return " ".join(f"{method}: {text[0].lower()}{text[1:]}" if method else text for method, text in said)


def _lowest(suite: str, runs: Sequence[RunRecord], original: RunRecord | None) -> str:
    """Returns the first task on which low is good."""
    asked = next(iter(to_go(suite, [*([original] if original else []), *runs])), None)
    values = [(s.value, run.name) for run in runs if asked and (s := score_of(run, suite, asked)) and s.value is not None]
    if asked is None or not values:
        return ""
    value, name = min(values)
    start = score_of(original, suite, asked) if original else None
    before = f", the original's {number(asked.metric, start.value)}" if start and start.value is not None else ""
    who = f" ({name})" if len(runs) > 1 else ""
    what = f"{meaning(asked.metric).label} on {_task(asked.task)}"
    return f"{'The lowest' if len(runs) > 1 else 'The'} {what} is {number(asked.metric, value)}{who}{before}."


def _suite(suite: str) -> str:
    """Names a suite in a sentence; a suite that is called `suite` is not named twice."""
    return "the suite" if suite == "suite" else f"the suite {suite}"


def _task(task: str) -> str:
    return f"“{task_label(task)}”"


def _count(runs: Sequence[RunRecord], word: str) -> str:
    return f"{len(runs)} {word}{'s' if len(runs) != 1 else ''}"


def _asked(runs: Sequence[RunRecord], aim: Aim) -> str:
    counts = {run.provenance.counts.get("forget") for run in runs if run.provenance}
    count = counts.pop() if len(counts) == 1 else None
    return f"{count:,} samples" if count else _task(aim.gone.task)


def _named(names: Sequence[str]) -> list[str]:
    return [*names[:NAMED], *([f"{len(names) - NAMED} more"] if len(names) > NAMED else [])]


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
