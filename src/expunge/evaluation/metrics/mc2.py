"""MC2: which share of the probability do the right answers have?"""

from typing import ClassVar, Literal

import numpy as np

from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored
from expunge.evaluation.metrics.truths import totals


class MC2(Metric):
    """Probability of all right answers, over that of all answers. Computed from logarithms: long answers do not underflow."""

    formula: ClassVar[str] = "sum over right answers of p(a | q) / sum over all answers of p(a | q), p of a whole answer"
    source: ClassVar[str] = "TruthfulQA (Lin et al. 2022, arXiv 2109.07958), its released evaluation"
    span: ClassVar[str] = "0 (the wrong answers have it all) .. 1 (the right ones do)"
    not_this: ClassVar[str] = "Not calibrated: one short answer may hold nearly all of it, and the lists differ in length."
    good: ClassVar[Good] = "knowledge"

    name: Literal["mc2"] = "mc2"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"answer", "paraphrases", "perturbed"})

    def score(self, row: Row) -> float | Unscored:
        found = totals(row)
        if isinstance(found, Unscored):
            return found
        right, wrong = (float(np.logaddexp.reduce(sums)) for sums in found)
        return float(1 / (1 + np.exp(np.clip(wrong - right, -700, 700))))
