"""Truth ratio: probability of wrong answers of the same form, relative to the right one."""

from typing import ClassVar, Literal

import numpy as np

from expunge.data.example import Example
from expunge.evaluation.metrics.base import Floats, Good, Metric, Need, Row, Unscored, unscorable
from expunge.records import Role

LARGEST_LOG = 700.0
"""exp of it is near the largest float64. Larger ratios are clipped, which keeps their order."""


def truth_ratio(right: Floats, wrong: Floats, *, geometric: bool = False) -> Floats:
    """Computes the mean length-normalized probability of the wrong answers over that of the right ones.

    right: mean log-probabilities per token, shape (..., number of right wordings), wrong: (..., number of wrong answers).
    The means over wordings are arithmetic, or with `geometric` the exponential of the mean logarithm.
    """
    means = _mean_of_logs if geometric else _log_of_mean
    return np.asarray(np.exp(np.clip(means(wrong) - means(right), -LARGEST_LOG, LARGEST_LOG)))


def _mean_of_logs(logs: Floats) -> Floats:
    return np.asarray(logs.mean(axis=-1))


def _log_of_mean(logs: Floats) -> Floats:
    top = logs.max(axis=-1, keepdims=True)  # so that tiny probabilities do not become 0
    return np.asarray(top[..., 0] + np.log(np.exp(logs - top).mean(axis=-1)))


def towards_one(ratios: Floats) -> Floats:
    """Computes min(R, 1/R): 1 if wrong and right answers are equally probable, 0 if either dominates."""
    return np.asarray(np.minimum(ratios, 1.0 / ratios))


def truthful(ratios: Floats) -> Floats:
    """Computes max(0, 1 - R): 1 if the right answer dominates, 0 if wrong ones are at least as probable."""
    return np.asarray(np.maximum(0.0, 1.0 - ratios))


class TruthRatio(Metric):
    """Samples hold the raw ratio R; a task reports the mean of min(R, 1/R) (forget) or of max(0, 1 - R) (others)."""

    formula: ClassVar[str] = (
        "R = mean over wrong answers of P(a|q)^(1/|a|) / P(right|q)^(1/|right|); "
        "right = the paraphrase, or the response where there is none"
    )
    source: ClassVar[str] = (
        "TOFU (Maini et al. 2024, arXiv 2401.06121: arithmetic mean). The released code of TOFU and "
        "open-unlearning takes the geometric mean: `compat`."
    )
    span: ClassVar[str] = (
        "R in 0 (right answer sure) .. infinity (wrong ones sure), 1 = cannot tell; reported in 0 .. 1: on forget 1 = cannot "
        "tell right from wrong, elsewhere 1 = right answer sure"
    )
    not_this: ClassVar[str] = (
        "Not a measure of forgetting by itself: a model that never saw the answer is not at exactly 1. Forget quality compares "
        "its distribution with such a model's."
    )
    good: ClassVar[Good] = "always"

    name: Literal["truth_ratio"] = "truth_ratio"
    compat: bool = False
    """The geometric mean of the released code instead of the paper's arithmetic one."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"answer", "paraphrases", "perturbed"})

    def needs_of(self, example: Example) -> frozenset[Need]:
        return frozenset({"paraphrases" if example.paraphrases else "answer", "perturbed"})

    def score(self, row: Row) -> float | Unscored:
        right, wrong = row.paraphrases or (row.answer,), row.perturbed
        if not wrong:
            return Unscored("the example has no wrong answers (`perturbed`) to compare with")
        if reason := unscorable(*right, *wrong):
            return reason
        rights, wrongs = (np.array([answer.mean_logp() for answer in answers]) for answers in (right, wrong))
        return float(truth_ratio(rights, wrongs, geometric=self.compat))

    def reported(self, values: Floats, role: Role) -> Floats:
        return towards_one(values) if role == "forget" else truthful(values)
