"""Normalized preference: whether the right answer is more probable per token than the made-up one."""

from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good
from expunge.evaluation.metrics.truths import BestAgainstWrong
from expunge.evaluation.token_stats import TokenStats


class PreferenceNormalized(BestAgainstWrong):
    """One where the mean loss per token of the right answer, its end token included, is below that of each wrong one."""

    formula: ClassVar[str] = "[mean over t of -log p(right_t) < min over wrong answers of mean over t of -log p(wrong_t)]"
    source: ClassVar[str] = "own; the sum of Ext-Sub's release (Hu et al. 2024, arXiv 2308.08090), divided by the length"
    span: ClassVar[str] = "0 or 1 for a question; 0.5 is chance with one wrong answer"
    not_this: ClassVar[str] = "Not `preference`: this one favors the longer answer. Never compare the two."
    good: ClassVar[Good] = "knowledge"

    name: Literal["preference_normalized"] = "preference_normalized"

    def value(self, answer: TokenStats) -> float:
        return answer.mean_logp()
