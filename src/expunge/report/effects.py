"""Computes how far each run is from the original and the gold model: three ratios, with paired bootstrap intervals."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from expunge.errors import ExpungeError
from expunge.evaluation.verdict import verdict
from expunge.records import Record, Score
from expunge.report.aims import Aim
from expunge.report.groups import TaskMetric
from expunge.report.read import RunRecord

SUITE, FORGET, RETAIN = "lab", "facts_forget", "facts_retain"
LAB = Aim(SUITE, TaskMetric(FORGET, "probability"), TaskMetric(RETAIN, "probability"))
"""The tasks that summary.json is about."""
NEAR_GOLD = (0.8, 1.2)
"""Forget effects within a fifth of the way from original to gold: the band in the figure. It is not a verdict."""
KEPT = 0.9
"""Smallest share of the retain score that counts as kept."""
RESAMPLES = 2000

Ratio = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Effects(NamedTuple):
    """The coordinates of one model in the forgotten-against-kept figure."""

    gone: Score
    """`forget_effect` with a gold model, `relative_drop` without, the score itself if there is no original either."""
    kept: Score
    """`retain_kept`, or the score itself if there is no original."""


class LabRow(Record):
    """One model in the lab's summary; a value is null if the suite did not give it."""

    name: str
    method: str | None
    family: str | None
    artifact: str | None
    """The evaluated model, as the evaluation names it."""
    verdict: str | None
    """Verdict of the run against gold, in the words of `expunge.evaluation.verdict`."""
    forget_effect: float | None
    retain_kept: float | None
    probability_forget: float | None
    probability_retain: float | None
    extraction_strength_forget: float | None
    forget_quality: float | None
    model_utility: float | None


class LabSummary(Record):
    """summary.json: `original`, `gold`, then the runs in the order given."""

    seed: int | None
    seconds: float | None
    runs: tuple[LabRow, ...]


def forget_effect(run: RunRecord, original: RunRecord, gold: RunRecord, aim: Aim = LAB) -> Score:
    """Computes (original - run) / (original - gold) of the mean forget score, on the samples that all three share.

    0 is the original model, 1 is gold's level, and well above 1 is over-forgotten.
    """

    def ratio(p_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return p_K[..., 0] - p_K[..., 1], p_K[..., 0] - p_K[..., 2]

    undefined = "the original does not know the forget set better than gold"
    return _estimate("forget_effect", aim.suite, aim.gone, (original, run, gold), ratio, undefined)


def share_gone(run: RunRecord, original: RunRecord, aim: Aim) -> Score:
    """Computes (original - run) / original of the mean forget score. Without gold the target is unknown."""

    def ratio(p_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return p_K[..., 0] - p_K[..., 1], p_K[..., 0]

    return _estimate(
        "relative_drop", aim.suite, aim.gone, (original, run), ratio, "the original scores 0: there is nothing to lose"
    )


def retain_kept(run: RunRecord, original: RunRecord, aim: Aim = LAB) -> Score:
    """Computes run / original of the mean retain score, on the samples that both share."""

    def ratio(p_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return p_K[..., 1], p_K[..., 0]

    if aim.stays is None:
        return Score(task="suite", metric="retain_kept", value=None, n=0, unscored="the suite has no task to keep")
    return _estimate("retain_kept", aim.suite, aim.stays, (original, run), ratio, "the original does not know the retain set")


def _estimate(metric: str, suite: str, asked: TaskMetric, models: Sequence[RunRecord], ratio: Ratio, undefined: str) -> Score:
    """Computes the ratio of means, and its 95 % interval over samples that are resampled together for all K models.

    Samples are paired, since a hard sample is hard for every model. Without per-sample values the ratio is computed from the
    scores and has no interval.
    """
    task = asked.task
    columns = [m.values(suite, task, asked.metric) for m in models]
    shared = sorted(set.intersection(*(set(c) for c in columns)))
    if shared:
        values_NK = np.array([[c[i] for c in columns] for i in shared])
        means_K, n = values_NK.mean(axis=0), len(shared)
    elif all(columns):
        names = ", ".join(m.name for m in models)
        return Score(task=task, metric=metric, value=None, n=0, unscored=f"{names} share no sample of {task}")
    else:
        scores = [m.score(suite, task, asked.metric) for m in models]
        missing = next((m.name for m, s in zip(models, scores, strict=True) if s is None or s.value is None), None)
        if missing is not None:
            return Score(task=task, metric=metric, value=None, n=0, unscored=f"{missing} has no {asked.metric} on {task}")
        means_K, n = np.array([s.value for s in scores if s is not None], float), min(s.n for s in scores if s is not None)
    above, below = ratio(means_K)
    if below <= 0:
        return Score(task=task, metric=metric, value=None, n=n, unscored=undefined)
    low, high = _interval(values_NK, ratio) if shared else (None, None)
    return Score(task=task, metric=metric, value=float(above / below), low=low, high=high, n=n)


def _interval(values_NK: np.ndarray, ratio: Ratio) -> tuple[float, float] | tuple[None, None]:
    """Returns percentiles 2.5 and 97.5; None if a resample would divide by zero, or if the ratio is constant by definition."""
    above_R, below_R = ratio(_weights(len(values_NK)) @ values_NK)
    if (below_R <= 0).any():
        return None, None
    ratio_R = above_R / below_R
    if (ratio_R == ratio_R[0]).all():
        return None, None
    low, high = np.quantile(ratio_R, (0.025, 0.975))
    return float(low), float(high)


@lru_cache(maxsize=2)
def _weights(n: int) -> np.ndarray:
    """Returns the weight of each of n samples in each resample, shape (RESAMPLES, n): the same for every model and ratio."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n


def summarize_lab(
    runs: Sequence[RunRecord], original: RunRecord, gold: RunRecord, seed: int | None, seconds: float | None
) -> LabSummary:
    """Makes summary.json of a quickstart: one row per model, `original` and `gold` first. Raises ExpungeError for a model
    without scores of the suite lab."""
    for model in (original, gold):
        if model.evaluation(SUITE) is None:
            raise ExpungeError(f"{model.folder} has no scores of the suite lab; make them with `expunge evaluate --suite lab`")

    never = gold.samples.get(SUITE, ())

    def row(run: RunRecord, name: str) -> LabRow:
        evaluation = run.evaluation(SUITE)

        def value(task: str, metric: str) -> float | None:
            score = run.score(SUITE, task, metric)
            return score.value if score else None

        return LabRow(
            name=name,
            method=run.method,
            family=run.family,
            artifact=evaluation.artifact if evaluation else None,
            verdict=None if run is gold or run is original else verdict(run.samples.get(SUITE, ()), never).words,
            forget_effect=forget_effect(run, original, gold).value,
            retain_kept=retain_kept(run, original).value,
            probability_forget=value(FORGET, "probability"),
            probability_retain=value(RETAIN, "probability"),
            extraction_strength_forget=value(FORGET, "extraction_strength"),
            forget_quality=value("suite", "forget_quality"),
            model_utility=value("suite", "model_utility"),
        )

    rows = [row(original, "original"), row(gold, "gold"), *(row(run, run.name) for run in runs)]
    return LabSummary(seed=seed, seconds=seconds, runs=tuple(rows))
