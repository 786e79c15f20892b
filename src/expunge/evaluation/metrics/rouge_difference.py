"""ROUGE difference: how much closer the generated answer is to a right answer than to a wrong one, by ROUGE."""

from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good
from expunge.evaluation.metrics.truths import DifferenceMetric
from expunge.evaluation.rouge import Kind, rouge


class RougeDifference(DifferenceMetric):
    """Largest ROUGE F1 of the greedy answer with a right answer (a refusal is one), minus the largest with a wrong one."""

    formula: ClassVar[str] = "max over right answers of ROUGE(answer, right) - max over wrong answers of ROUGE(answer, wrong)"
    source: ClassVar[str] = "`rouge diff` of TruthfulQA's evaluation (Lin et al. 2022, arXiv 2109.07958), equal to rouge-score"
    span: ClassVar[str] = "-1 (a wrong answer, word for word) .. 1 (a right one); 0: no nearer to either"
    not_this: ClassVar[str] = "Not truth: common words decide, and a right answer in other words counts for nothing."
    good: ClassVar[Good] = "knowledge"

    name: Literal["rouge_difference"] = "rouge_difference"
    kind: Kind = "rougeL"
    """Single words, pairs of words, or the longest common subsequence."""

    def likeness(self, text: str, generated: str) -> float:
        return rouge(self.kind, text, generated).f1
