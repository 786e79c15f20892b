"""MC2: share of the probability that the right answers have."""

from typing import ClassVar, Literal

import numpy as np

from expunge.evaluation.metrics.base import Good
from expunge.evaluation.metrics.truths import RightAgainstWrong


class MC2(RightAgainstWrong):
    """Probability of all right answers, over that of all answers. Computed from logarithms: long answers do not underflow."""

    formula: ClassVar[str] = "sum over right answers of p(a | q) / sum over all answers of p(a | q), p of a whole answer"
    source: ClassVar[str] = "TruthfulQA (Lin et al. 2022, arXiv 2109.07958), its released evaluation"
    span: ClassVar[str] = "0 (the wrong answers have it all) .. 1 (the right ones do)"
    not_this: ClassVar[str] = "Not calibrated: one short answer may hold nearly all of it, and the lists differ in length."
    good: ClassVar[Good] = "knowledge"

    name: Literal["mc2"] = "mc2"

    def compare(self, right: list[float], wrong: list[float]) -> float:
        all_right, all_wrong = (float(np.logaddexp.reduce(sums)) for sums in (right, wrong))
        return float(1 / (1 + np.exp(np.clip(all_wrong - all_right, -700, 700))))
