"""Computes what an attack brought back beyond its control, with a bootstrap interval.

Advantage = mean over facts of the attacked model minus the same of the control. The gain is the advantage after the attack
beyond the advantage that was there before it, where that was above zero:

    gain = advantage_after - max(0, advantage_before)

So an over-forgotten model that an attack only lifts to the level of a model that never knew shows no gain, and neither does
knowledge that had not gone in the first place. Of several ways (wordings, steps, formats) the best counts, chosen on one half of
the facts and scored on the other (cross-fitting), so that the best of many ways is not above zero by luck alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from expunge.attacks.base import Found
from expunge.attacks.knowledge import Floats
from expunge.evaluation.statistics import percentiles, resampled
from expunge.records import Gain

RESAMPLES = 2000


class Compared(NamedTuple):
    """The gain, and what it rests on."""

    gain: Gain
    p: float | None
    """One-sided bootstrap p-value of no gain."""
    ways: tuple[str, ...]
    """Labels of the ways that were chosen on the two halves."""
    after: Floats
    """[facts] of the attacked model, each by the way that was chosen on the other half."""
    control_after: Floats
    reason: str | None = None


class Side(NamedTuple):
    """One of the two that are compared."""

    before: Floats
    found: Found


def over_control(mine: Side, control: Side, *, paired: bool) -> Compared:
    """The gain of one model and set of facts over another.

    paired: both are the same facts in the same order (a gold model); otherwise the groups are drawn independently.
    """
    labels = [way.label for way in mine.found.ways]
    ways = np.stack([way.values for way in mine.found.ways])
    theirs = np.stack([way.values for way in control.found.ways])
    chosen = _cross_fitted(ways, theirs)
    after, control_after = _assembled(ways, chosen), _assembled(theirs, chosen)
    picked = tuple(dict.fromkeys(labels[i] for i in chosen))
    groups = _groups(after, mine.before, control_after, control.before, paired)
    if min(len(group[0]) for group in groups) < 2:
        return Compared(Gain(value=None), None, picked, after, control_after, "fewer than two facts could be scored")
    value = float(_gain(*(np.asarray(values.mean()) for group in groups for values in group)))
    drawn = [draws for group in resampled(groups, resamples=RESAMPLES) for draws in group]
    draws = _gain(*drawn)
    low, high = percentiles(draws)
    p = float((1 + np.count_nonzero(draws <= 0)) / (1 + len(draws)))
    return Compared(Gain(value=value, low=low, high=high), p, picked, after, control_after)


def _gain(after: Floats, before: Floats, control_after: Floats, control_before: Floats) -> Floats:
    return np.asarray((after - control_after) - np.maximum(0.0, before - control_before))


def _groups(
    after: Floats, before: Floats, control_after: Floats, control_before: Floats, paired: bool
) -> Sequence[Sequence[Floats]]:
    """What is drawn together, without facts that lack a value."""
    if paired:
        whole = np.isfinite(after + before + control_after + control_before)
        return [[values[whole] for values in (after, before, control_after, control_before)]]
    mine, theirs = np.isfinite(after + before), np.isfinite(control_after + control_before)
    return [[after[mine], before[mine]], [control_after[theirs], control_before[theirs]]]


def _cross_fitted(ways_WF: Floats, control_WF: Floats) -> tuple[int, int]:
    """For the facts at even and at odd places the way that has the largest advantage on the others; W ways, F facts."""
    chosen = []
    for fold in (0, 1):
        others, control_others = ways_WF[:, 1 - fold :: 2], control_WF[:, 1 - fold :: 2]
        with np.errstate(invalid="ignore"):
            advantage = _means(others) - _means(control_others)
        chosen.append(int(np.argmax(np.where(np.isfinite(advantage), advantage, -np.inf))))
    return chosen[0], chosen[1]


def _means(values_WF: Floats) -> Floats:
    """Mean over the facts that have a value; minus infinity for a way that scores less than half of them."""
    scored = np.isfinite(values_WF)
    count = scored.sum(axis=1)
    total = np.where(scored, values_WF, 0.0).sum(axis=1)
    enough = 2 * count >= values_WF.shape[1]
    return np.where(enough & (count > 0), total / np.maximum(count, 1), -np.inf)


def _assembled(ways_WF: Floats, chosen: tuple[int, int]) -> Floats:
    after = ways_WF[chosen[0]].copy()
    after[1::2] = ways_WF[chosen[1]][1::2]
    return after
