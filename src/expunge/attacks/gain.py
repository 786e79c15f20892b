"""Computes what an attack recovered beyond its control, with a bootstrap interval.

Advantage = mean over facts of the attacked model minus the same of the control. The gain is the advantage after the attack
beyond the advantage that was there before it, where that was above zero:

    gain = advantage_after - max(0, advantage_before)

An over-forgotten model that an attack only raises to the level of a model that never knew shows no gain, nor does knowledge that
was not forgotten. Of several ways (wordings, steps, formats) the best counts, chosen on one half of the facts and scored on the
other (cross-fitting), so that the best of many ways is not above zero by chance.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from expunge.attacks.base import Found
from expunge.attacks.knowledge import Floats
from expunge.evaluation.statistics import percentiles
from expunge.records import Gain

RESAMPLES = 2000


class Compared(NamedTuple):
    """The gain, and its parts."""

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
    """One of the two compared models or sets."""

    before: Floats
    found: Found
    clusters: NDArray[np.intp]
    """[facts], the index of each fact's subject."""


class _Group(NamedTuple):
    """Values of the same facts, drawn together."""

    values: Sequence[Floats]
    clusters: NDArray[np.intp]


def over_control(mine: Side, control: Side, *, paired: bool) -> Compared:
    """Computes the gain of one model and set of facts over another.

    paired: both are the same facts in the same order (a gold model); otherwise the groups are resampled independently. Subjects
    are resampled with all their facts, which are not independent.
    """
    labels = [way.label for way in mine.found.ways]
    ways = np.stack([way.values for way in mine.found.ways])
    theirs = np.stack([way.values for way in control.found.ways])
    chosen = _cross_fitted(ways, theirs)
    after, control_after = _assembled(ways, chosen), _assembled(theirs, chosen)
    picked = tuple(dict.fromkeys(labels[i] for i in chosen))
    groups = _groups(after, mine, control_after, control, paired)
    if min(len(set(group.clusters.tolist())) for group in groups) < 2:
        return Compared(Gain(value=None), None, picked, after, control_after, "fewer than two subjects could be scored")
    value = float(_gain(*(np.asarray(values.mean()) for group in groups for values in group.values)))
    rng = np.random.default_rng(0)
    draws = _gain(*(means for group in groups for means in _drawn(group, rng)))
    low, high = percentiles(draws)
    p = float((1 + np.count_nonzero(draws <= 0)) / (1 + len(draws)))
    return Compared(Gain(value=value, low=low, high=high), p, picked, after, control_after)


def _gain(after: Floats, before: Floats, control_after: Floats, control_before: Floats) -> Floats:
    return np.asarray((after - control_after) - np.maximum(0.0, before - control_before))


def _groups(after: Floats, mine: Side, control_after: Floats, control: Side, paired: bool) -> Sequence[_Group]:
    """Returns the groups that are resampled together, without facts that lack a value."""
    if paired:
        four = (after, mine.before, control_after, control.before)
        whole = np.isfinite(sum(four))
        return [_Group([values[whole] for values in four], mine.clusters[whole])]
    pairs = ((after, mine.before, mine.clusters), (control_after, control.before, control.clusters))
    return [
        _Group([late[whole], early[whole]], clusters[whole])
        for late, early, clusters in pairs
        for whole in [np.isfinite(late + early)]
    ]


def _drawn(group: _Group, rng: np.random.Generator) -> list[Floats]:
    """Computes bootstrap means [resamples] of each of the group's values, resampling subjects."""
    places = np.unique(group.clusters, return_inverse=True)[1]
    count = int(places.max()) + 1
    sizes = np.bincount(places, minlength=count)
    pick = rng.integers(0, count, size=(RESAMPLES, count))
    total = sizes[pick].sum(axis=1)
    return [np.bincount(places, weights=values, minlength=count)[pick].sum(axis=1) / total for values in group.values]


def _cross_fitted(ways_WF: Floats, control_WF: Floats) -> tuple[int, int]:
    """Returns, for the facts at even and at odd indices, the way that has the largest advantage on the others; W ways, F
    facts."""
    chosen = []
    for fold in (0, 1):
        others, control_others = ways_WF[:, 1 - fold :: 2], control_WF[:, 1 - fold :: 2]
        with np.errstate(invalid="ignore"):
            advantage = _means(others) - _means(control_others)
        chosen.append(int(np.argmax(np.where(np.isfinite(advantage), advantage, -np.inf))))
    return chosen[0], chosen[1]


def _means(values_WF: Floats) -> Floats:
    """Computes the mean over the facts that have a value; minus infinity for a way that scores less than half of them."""
    scored = np.isfinite(values_WF)
    count = scored.sum(axis=1)
    total = np.where(scored, values_WF, 0.0).sum(axis=1)
    enough = 2 * count >= values_WF.shape[1]
    means_W: Floats = np.where(enough & (count > 0), total / np.maximum(count, 1), -np.inf)
    return means_W


def _assembled(ways_WF: Floats, chosen: tuple[int, int]) -> Floats:
    after: Floats = ways_WF[chosen[0]].copy()
    after[1::2] = ways_WF[chosen[1]][1::2]
    return after
