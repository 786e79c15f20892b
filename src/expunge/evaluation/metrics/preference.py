"""Preference: whether the right answer is more probable than the made-up one."""

from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good
from expunge.evaluation.metrics.truths import BestAgainstWrong


class Preference(BestAgainstWrong):
    """One where the loss of the right answer, summed over its tokens with the end token, is below that of each wrong one."""

    formula: ClassVar[str] = "[sum over t of -log p(right_t) < min over wrong answers of sum over t of -log p(wrong_t)]"
    source: ClassVar[str] = "the HaluEval score of Ext-Sub's release (Hu et al. 2024, arXiv 2308.08090)"
    span: ClassVar[str] = "0 or 1 for a question; 0.5 is chance with one wrong answer"
    not_this: ClassVar[str] = "Not HaluEval's own protocol, which asks yes or no; and a sum favors the shorter of two answers."
    good: ClassVar[Good] = "knowledge"

    name: Literal["preference"] = "preference"
