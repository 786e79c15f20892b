"""Computes bootstrap intervals and tests over per-sample values."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 1000
CHUNK = 4_000_000
"""Numbers drawn at a time, so that an interval over 14,000 samples needs 64 MB instead of 230."""


class Interval(NamedTuple):
    low: float
    high: float


def mean(values: Floats) -> Floats:
    """Computes the mean over the last axis."""
    return np.asarray(values.mean(axis=-1))


def resampled(groups: Sequence[Sequence[Floats]], *, resamples: int = RESAMPLES, seed: int = 0) -> list[list[Floats]]:
    """Computes bootstrap means: for each group a list of arrays of `resamples` means.

    Arrays of one group hold values of the same samples and are drawn together (paired); groups are drawn
    independently of each other.
    """
    rng = np.random.default_rng(seed)
    means: list[list[Floats]] = []
    for group in groups:
        n = len(group[0])
        rows = max(1, CHUNK // n)
        chunks = []
        for start in range(0, resamples, rows):
            pick = rng.integers(0, n, size=(min(rows, resamples - start), n))
            chunks.append([mean(values[pick]) for values in group])
        means.append([np.concatenate([chunk[i] for chunk in chunks]) for i in range(len(group))])
    return means


def percentiles(draws: Floats) -> Interval:
    """Returns the middle 95 % of bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(low), float(high))


def bootstrap_interval(
    values: Floats, statistic: Callable[[Floats], Floats] = mean, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Computes the 95 % percentile interval of `statistic` (a function over the last axis) by resampling `values` with
    replacement.

    None for fewer than two samples, which have no spread. The percentile method (Efron & Tibshirani
    1993, ch. 13) keeps the interval inside the range of the metric, which a normal interval near 0 or 1 does not.
    """
    n = len(values)
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // n)
    draws = [
        np.asarray(statistic(values[rng.integers(0, n, size=(min(rows, resamples - start), n))]))
        for start in range(0, resamples, rows)
    ]
    return percentiles(np.concatenate(draws))


def ks_2samp(first: Floats, second: Floats) -> float:
    """Computes the two-sided p-value of the two-sample Kolmogorov-Smirnov test; exact up to 10,000 samples (scipy's default)."""
    from scipy.stats import ks_2samp as two_sided  # a second to import, and few suites need it

    return float(two_sided(first, second).pvalue)


def harmonic_mean(values: Floats) -> Floats:
    """Computes the harmonic mean over the last axis of numbers >= 0; 0 if one of them is 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(values.shape[-1] / np.sum(1.0 / values, axis=-1))


def auc(members: Floats, others: Floats) -> float:
    """Computes the area under the ROC curve: the probability that a member's score is above another's, ties counted half."""
    from sklearn.metrics import roc_auc_score  # three seconds to import, and few suites need it

    labels = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    return float(roc_auc_score(labels, np.concatenate([members, others])))


def auc_draws(members: Floats, others: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Computes bootstrap draws of `auc`, [resamples]; members and others are resampled independently.

    The drawn samples depend only on the two lengths and the seed, so that draws of two models on the same samples are paired.
    Values are sorted once; a draw is two histograms over the distinct values.
    """
    distinct, place = np.unique(np.concatenate([members, others]), return_inverse=True)
    levels, n, m = len(distinct), len(members), len(others)
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // (n + m))
    draws = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        mine = _histograms(place[:n][rng.integers(0, n, size=(count, n))], levels)
        theirs = _histograms(place[n:][rng.integers(0, m, size=(count, m))], levels)
        below = theirs.cumsum(axis=1) - theirs / 2
        draws.append((mine * below).sum(axis=1) / (n * m))
    return np.concatenate(draws)


def _histograms(places: NDArray[np.intp], levels: int) -> Floats:
    """Counts how often each of `levels` indices occurs in each row."""
    rows = len(places)
    offsets = np.arange(rows)[:, None] * levels
    return np.bincount((places + offsets).ravel(), minlength=rows * levels).reshape(rows, levels).astype(np.float64)
