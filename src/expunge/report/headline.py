"""The report in one sentence, from the numbers alone."""

from collections.abc import Sequence

from expunge.records import Score
from expunge.report.changes import Changes
from expunge.report.effects import AS_IF_NEVER_LEARNED, FORGET, KEPT, SUITE, forget_effect, retain_kept, still_extractable
from expunge.report.glossary import meaning, number, task_label
from expunge.report.groups import score_of, to_go
from expunge.report.matrix import Matrix
from expunge.report.read import RunRecord


def lab_headline(runs: Sequence[RunRecord], original: RunRecord, gold: RunRecord) -> tuple[str, str]:
    """What was asked and which methods land nearest gold; then who fell short or went too far. The runs come nearest first."""
    if not runs:
        return "The original and the gold model, before any unlearning.", ""
    found = [(run.name, forget_effect(run, original, gold), retain_kept(run, original)) for run in runs]
    low, high = AS_IF_NEVER_LEARNED
    measured = [(name, e.value, k.value) for name, e, k in found if e.value is not None and k.value is not None]
    good = [m for m in measured if low <= m[1] <= high and m[2] >= KEPT]
    left = [f"{run.name} ({_extracted(run)})" for run in runs if still_extractable(run, original, gold)]
    asked = f"{_count(runs, 'method')} {'were' if len(runs) != 1 else 'was'} asked to forget {_asked(runs)}: "
    if not good:
        return asked + "none lands as if never learned with the retain set kept.", _rest(measured, len(runs), 0, left)
    name, effect, kept = good[0]
    nearest = f"{name} lands nearest to a model that never learned them (forget effect {_two(effect)}, retain kept {_two(kept)})"
    return f"{asked}{nearest}{_followers(good[1:])}.", _rest(measured, len(runs), len(good), left)


def _followers(good: Sequence[tuple[str, float, float]]) -> str:
    """The next three by name, the others by number: a headline is read in one breath."""
    names = [f"{n} ({_two(e)})" for n, e, _ in good[:3]] + ([f"{len(good) - 3} more"] if len(good) > 3 else [])
    return f", followed by {_list(names)}" if names else ""


def _extracted(run: RunRecord) -> str:
    score = run.score(SUITE, FORGET, "extraction_strength")
    return number("extraction_strength", score.value) if score and score.value is not None else ""


def _rest(measured: Sequence[tuple[str, float, float]], total: int, good: int, extractable: Sequence[str]) -> str:
    low, high = AS_IF_NEVER_LEARNED
    groups = [
        ("Over-forgotten", [f"{n} ({_two(e)})" for n, e, _ in measured if e > high]),
        ("Still known", [f"{n} ({_two(e)})" for n, e, _ in measured if e < low]),
        ("Low by probability, but still extractable once the beginning is given", list(extractable)),
        ("Retain set damaged", [f"{n} ({_two(k)} kept)" for n, _, k in measured if k < KEPT]),
    ]
    said = [f"{what}: {_list(names)}." for what, names in groups if names]
    lands = f"{good} of {total} land{'s' if good == 1 else ''} between {low} and {high} with at least {100 * KEPT:.0f} % kept."
    return " ".join([lands, *said])


def suite_headline(
    suite: str, runs: Sequence[RunRecord], original: RunRecord | None, cost: Changes | None, matrices: Sequence[Matrix]
) -> tuple[str, str]:
    """Who comes nearest to a retain model and at what utility; without forget quality, who is lowest on what was to go, and what
    that cost; where runs forgot different tasks, how much of these is gone and what went with them."""
    quality = {run.name: run.score(suite, "suite", "forget_quality") for run in runs}
    scored: list[tuple[float, str]] = [(s.value, name) for name, s in quality.items() if s and s.value is not None]
    names = _count(runs, "run")
    if not scored:
        reason = next((s.unscored for s in quality.values() if s and s.unscored), None)
        why = f" Forget quality was not computed: {reason}." if reason else ""
        return plain_headline(suite, runs, original, cost, matrices), why.strip()
    best, name = max(scored)
    run = next(r for r in runs if r.name == name)
    word = "cannot be told apart from" if best > 0.05 else "can still be told apart from"
    nearest = f"Of {names} on the suite {suite}, {name} comes nearest to a model trained without the forget set"
    first = f"{nearest} (p\u00a0=\u00a0{number('forget_quality', best)})"
    return f"{first} and {word} it; {_utility(run.score(suite, 'suite', 'model_utility'), original, suite)}.", ""


def plain_headline(
    suite: str, runs: Sequence[RunRecord], original: RunRecord | None, cost: Changes | None, matrices: Sequence[Matrix]
) -> str:
    """Without a word on distances from a retain model."""
    found = (_lowest(suite, runs, original), cost.sentence([r.name for r in runs]) if cost else "")
    said = [drops(matrices)] if matrices else [text for text in found if text]
    return f"{_count(runs, 'run')} on the suite {suite}. {' '.join(said)}".strip()


def drops(matrices: Sequence[Matrix]) -> str:
    """For each method, how much of what it was to forget is gone, and what went with it."""
    said = [(m.method, m.sentence()) for m in matrices]
    return " ".join(f"{method}: {text[0].lower()}{text[1:]}" if method else text for method, text in said)


def _lowest(suite: str, runs: Sequence[RunRecord], original: RunRecord | None) -> str:
    """The first of the tasks that low is good for."""
    asked = next(iter(to_go(suite, [*([original] if original else []), *runs])), None)
    values = [(s.value, run.name) for run in runs if asked and (s := score_of(run, suite, asked)) and s.value is not None]
    if asked is None or not values:
        return ""
    value, name = min(values)
    start = score_of(original, suite, asked) if original else None
    before = f", the original's {number(asked.metric, start.value)}" if start and start.value is not None else ""
    who = f" ({name})" if len(runs) > 1 else ""
    lowest = "the lowest " if len(runs) > 1 else "the "
    what = f"{meaning(asked.metric).label} on {task_label(asked.task)}"
    return f"{lowest.capitalize()}{what} is {number(asked.metric, value)}{who}{before}."


def _utility(after: Score | None, original: RunRecord | None, suite: str) -> str:
    if after is None or after.value is None:
        return "its model utility was not computed"
    before = original.score(suite, "suite", "model_utility") if original else None
    compared = f", the original's {number('model_utility', before.value)}" if before and before.value is not None else ""
    return f"its model utility is {number('model_utility', after.value)}{compared}"


def _count(runs: Sequence[RunRecord], word: str) -> str:
    return f"{len(runs)} {word}{'s' if len(runs) != 1 else ''}"


def _asked(runs: Sequence[RunRecord]) -> str:
    counts = {run.provenance.counts.get("forget") for run in runs if run.provenance}
    count = counts.pop() if len(counts) == 1 else None
    return f"{count:,} samples" if count else "a set of samples"


def _two(value: float) -> str:
    return number("forget_effect", value)


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
