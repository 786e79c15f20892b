"""Computes side effects: the change of every task that was to be kept, their mean, and the largest loss.

    change = score after - score before

A mean hides the collapse of one task: in SPUNGE's table of ten benchmarks (arXiv 2406.11780) the mean falls by two points while
GSM8K loses half of its score. If both models' samples are stored, the interval is a paired bootstrap over the samples'
differences; otherwise the two intervals are combined as independent by the method of variance estimates recovery (Newcombe
1998, Zou & Donner 2008),

    low = d - sqrt((after - low_after)^2 + (high_before - before)^2),   high likewise,

and so is the interval of the mean over tasks, which are independent.
"""

from collections.abc import Sequence
from math import hypot
from typing import NamedTuple

import numpy as np

from expunge.records import Score
from expunge.report.checks import same_samples
from expunge.report.glossary import meaning, number, task_label
from expunge.report.groups import TaskMetric, kept
from expunge.report.read import RunRecord
from expunge.report.tables import DASH, Cell, Column, Table, score_cell, tint_of

RESAMPLES = 2000
CHUNK = 4_000_000
"""Numbers drawn at a time."""
TO_GO = "was to be forgotten"


class Changes(NamedTuple):
    suite: str
    asked: tuple[TaskMetric, ...]
    before: tuple[Score | None, ...]
    """The original's scores."""
    after: dict[str, tuple[Score, ...]]
    """Model -> change of each task."""
    unpaired: tuple[str, ...]
    """Names of tasks without stored samples."""

    def counted(self, model: str) -> list[tuple[TaskMetric, Score]]:
        """Returns the changes without the tasks that this run was to forget."""
        both = zip(self.asked, self.after[model], strict=True)
        return [(asked, score) for asked, score in both if score.unscored != TO_GO]

    def mean(self, model: str) -> Score:
        """Computes the mean over all tasks to keep; null if one is missing, since a mean over fewer tasks is another
        quantity."""
        counted = self.counted(model)
        missing = [task_label(asked.task) for asked, score in counted if score.value is None]
        if missing or not counted:
            reason = f"the mean over {len(counted)} tasks lacks {', '.join(missing)}" if missing else "no task was to be kept"
            return Score(task="suite", metric="change", value=None, n=0, unscored=reason)
        values, lows, highs = (np.array([getattr(s, f) for _, s in counted], float) for f in ("value", "low", "high"))
        value, n = float(values.mean()), sum(score.n for _, score in counted)
        below, above = (float(np.sqrt(np.square(values - ends).sum()) / len(values)) for ends in (lows, highs))
        low, high = (None, None) if np.isnan(below + above) else (value - below, value + above)
        return Score(task="suite", metric="change", value=value, low=low, high=high, n=n, higher_is_better=True)

    def worst(self, model: str) -> tuple[TaskMetric, Score] | None:
        """Returns the task that lost most, or gained least."""
        known = [(score.value, i) for i, (_, score) in enumerate(self.counted(model)) if score.value is not None]
        return self.counted(model)[min(known)[1]] if known else None

    def sentence(self, runs: Sequence[str]) -> str:
        """States the two main figures: the range of the means, and the largest loss on one task."""
        means = [(score.value, name) for name in runs if (score := self.mean(name)).value is not None]
        worst = [(found[1].value, name, found[0]) for name in runs if (found := self.worst(name)) and found[1].value is not None]
        if not worst:
            return "No change can be computed."
        value, name, asked = min(worst, key=lambda w: w[0])
        if value >= 0:
            return f"None of the {len(self.asked)} tasks to keep lost anything{'' if len(runs) == 1 else ' in any run'}."
        least = f"the worst change of one is {number('change', value)} ({task_label(asked.task)}"
        if len(runs) == 1:
            start = (
                f"The mean change over {len(self.counted(name))} tasks to keep is {number('change', means[0][0])}, "
                if means
                else ""
            )
            return start + least + ")." if start else least[0].upper() + least[1:] + ")."
        start = ""
        if means:
            low, high = min(means), max(means)
            start = f"The mean change over the tasks to keep lies between {number('change', low[0])} ({low[1]}) and "
            start += f"{number('change', high[0])} ({high[1]}); "
        text = f"{start}{least}, {name})."
        return text[0].upper() + text[1:]


def changes(suite: str, models: Sequence[RunRecord], original: RunRecord) -> Changes | None:
    """Computes the changes of every model but the original; None if fewer than two tasks were to be kept."""
    others = [model for model in models if model is not original]
    asked = kept(suite, [original, *others])
    if len(asked) < 2 or not others:
        return None
    before = tuple(original.score(suite, a.task, a.metric) for a in asked)
    after = {model.name: tuple(_change(model, original, suite, a) for a in asked) for model in others}
    alone = {
        asked[i]: None
        for model in others
        for i, score in enumerate(after[model.name])
        if score.value is not None and not _pairs(model, original, suite, asked[i])
    }
    return Changes(suite, asked, before, after, tuple(task_label(a.task) for a in alone))


def _change(model: RunRecord, original: RunRecord, suite: str, asked: TaskMetric) -> Score:
    after, before = (m.score(suite, asked.task, asked.metric) for m in (model, original))
    if after is None or before is None or after.value is None or before.value is None:
        lacking = original if before is None or before.value is None else model
        return _none(asked, f"{lacking.name} has no {meaning(asked.metric).label} on {task_label(asked.task)}")
    if after.higher_is_better is False:
        return _none(asked, TO_GO)
    if pairs := _pairs(model, original, suite, asked):
        differences = np.array([b - a for a, b in pairs])
        low, high = mean_interval(differences) or (None, None)
        value, n = float(differences.mean()), len(pairs)
    elif same_samples(model, original, suite, asked.task):
        value, n, (low, high) = after.value - before.value, after.n, _independent(after, before)
    else:
        return _none(asked, f"{model.name} and {original.name} were scored on different samples")
    return Score(task=asked.task, metric="change", value=value, low=low, high=high, n=n, higher_is_better=True)


def _none(asked: TaskMetric, reason: str) -> Score:
    return Score(task=asked.task, metric="change", value=None, n=0, unscored=reason)


def _pairs(model: RunRecord, original: RunRecord, suite: str, asked: TaskMetric) -> list[tuple[float, float]]:
    """Returns (before, after) of each sample that both have; empty if the score is not the mean of its samples' values."""
    before, after = (_values(m, suite, asked) for m in (original, model))
    return [(before[i], after[i]) for i in sorted(before.keys() & after.keys())]


def _values(model: RunRecord, suite: str, asked: TaskMetric) -> dict[str, float]:
    """Returns a task's samples, or those of the tasks that it pools, if their mean is its score."""
    score = model.score(suite, asked.task, asked.metric)
    values = model.values(suite, asked.task, asked.metric)
    if not values:
        evaluation = model.evaluation(suite)
        members = {s.task for s in (evaluation.scores if evaluation else ()) if s.task.startswith(f"{asked.task}_")}
        values = {f"{t} {i}": v for t in sorted(members) for i, v in model.values(suite, t, asked.metric).items()}
    exact = values and score and score.value is not None and abs(sum(values.values()) / len(values) - score.value) < 1e-6
    return values if exact else {}


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """Computes the 95 % percentile interval of a mean by resampling. Equal values are drawn together: a resample of right or
    wrong answers is one draw of a few counts, for any number of questions."""
    n = len(values)
    if n < 2:
        return None
    distinct, counts = np.unique(values, return_counts=True)
    rng, rows = np.random.default_rng(0), max(1, CHUNK // len(distinct))
    sizes = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    draws = np.concatenate([rng.multinomial(n, counts / n, size=size) @ distinct / n for size in sizes])
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def _independent(after: Score, before: Score) -> tuple[float, float] | tuple[None, None]:
    ends = (after.low, after.high, before.low, before.high)
    if after.value is None or before.value is None or None in ends:
        return None, None
    low_after, high_after, low_before, high_before = (float(e) for e in ends if e is not None)
    change = after.value - before.value
    below = hypot(after.value - low_after, high_before - before.value)
    return change - below, change + hypot(high_after - after.value, before.value - low_before)


def change_table(found: Changes) -> Table:
    """Makes the table: one row per task and one column per model, below the mean and the worst task."""
    models = list(found.after)
    means, worsts, names = zip(*(cost_cells(found, model) for model in models), strict=True)
    rows = [
        (Cell("Mean of all"), Cell(f"{len(found.asked)} tasks"), Cell(""), *means),
        (Cell("Worst of all"), Cell("change"), Cell(""), *worsts),
        (Cell("Worst of all"), Cell("task"), Cell(""), *names),
    ]
    for i, (asked, before) in enumerate(zip(found.asked, found.before, strict=True)):
        cells = [score_cell(found.after[m][i], tint=tint_of(found.after[m][i].value, found.after[m][i])) for m in models]
        rows.append((Cell(task_label(asked.task)), Cell(meaning(asked.metric).label), score_cell(before), *cells))
    caption = (
        f"Suite {found.suite}: change against the original on every task to keep, with 95 % intervals. The interval of the worst "
        "task is its own, not corrected for its having been picked."
    )
    if any(score.unscored == TO_GO for scores in found.after.values() for score in scores):
        caption += " What a run was to forget counts neither in its mean nor as its worst."
    if found.unpaired:
        caption += f" Not paired by sample: {', '.join(found.unpaired)}."
    columns = (Column("task"), Column("metric"), Column("original", True), *(Column(m, True) for m in models))
    return Table(f"{found.suite}-changes", caption, columns, tuple(rows), stub=2, apart=3)


def cost_cells(found: Changes, model: str) -> tuple[Cell, Cell, Cell]:
    """Returns mean change, worst change and worst task of a model; empty for the original."""
    if model not in found.after:
        return Cell(""), Cell(""), Cell("")
    worst = found.worst(model)
    return _mean_cell(found, model), _worst_cell(worst), Cell(task_label(worst[0].task) if worst else DASH)


def _mean_cell(found: Changes, model: str) -> Cell:
    mean = found.mean(model)
    return score_cell(mean, tint=tint_of(mean.value, mean), strong=True)


def _worst_cell(worst: tuple[TaskMetric, Score] | None) -> Cell:
    return (
        score_cell(worst[1], tint=tint_of(worst[1].value, worst[1]), strong=True)
        if worst
        else Cell(DASH, note="no change can be computed")
    )
