"""Probability of the answer, normalized by its length."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from expunge.evaluation.metrics.base import Floats, Good, Metric, Need, Row, Unscored, unscorable


def probability(mean_logp: Floats) -> Floats:
    """Computes exp of the mean log-probability per token, any shape."""
    return np.asarray(np.exp(mean_logp))


def probability_among(mean_logp: Floats, wrong: Sequence[Floats] | Floats) -> Floats:
    """Computes the share of the right answer among itself and the wrong ones: p / (p + sum of wrong p).

    mean_logp has shape (...), wrong has shape (..., number of wrong answers). Computed from differences of logarithms,
    so that tiny probabilities do not become 0/0.
    """
    gaps = np.asarray(wrong, dtype=np.float64) - np.asarray(mean_logp, dtype=np.float64)[..., None]
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(gaps).sum(axis=-1)))


class Probability(Metric):
    """Length-normalized probability of the response, its end token included."""

    formula: ClassVar[str] = (
        "P(a|q)^(1/|a|) = exp(mean over tokens of log p); "
        "with `among_perturbed`: divided by itself plus the same of each wrong answer"
    )
    source: ClassVar[str] = (
        "TOFU (Maini et al. 2024, arXiv 2401.06121). The paper compares options by un-normalized P(a|q); all "
        "released code, and so every published number, length-normalizes them, as done here: options differ in length."
    )
    span: ClassVar[str] = "0 (never says it) .. 1 (says nothing else)"
    not_this: ClassVar[str] = (
        "Not the chance that the model answers so: words of the template count like words of the fact, so that a fact never "
        "seen can stand near 0.4. Compare with never-known facts or with a model that was not trained on them."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["probability"] = "probability"
    among_perturbed: bool = False
    """Score the answer as one option among itself and the wrong answers (TOFU: real authors and world facts)."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"answer", "perturbed"}) if self.among_perturbed else frozenset({"answer"})

    def score(self, row: Row) -> float | Unscored:
        if self.among_perturbed and not row.perturbed:
            return Unscored("the example has no wrong answers (`perturbed`) to compare with")
        if reason := unscorable(row.answer, *row.perturbed):
            return reason
        right = np.array(row.answer.mean_logp())
        if not self.among_perturbed:
            return float(probability(right))
        return float(probability_among(right, np.array([wrong.mean_logp() for wrong in row.perturbed])))
