"""Similarity: overlap of the model's answers with another model's, for example before unlearning."""

from pathlib import Path
from typing import ClassVar, Literal

from expunge.evaluation.comparing import Earlier
from expunge.evaluation.judges import Judge
from expunge.evaluation.metrics.base import Good
from expunge.evaluation.metrics.judged import JudgedMetric


class Similarity(JudgedMetric):
    """ROUGE-L F1 between the greedy answer and the greedy answer of an earlier evaluation to the same example."""

    formula: ClassVar[str] = "2 LCS / (|before| + |after|) in words, LCS = length of their longest common subsequence"
    source: ClassVar[str] = "the similarity of answers in LLMU's evaluation (Yao et al. 2023, arXiv 2310.10683), with ROUGE-L"
    span: ClassVar[str] = "0 (no common word in order) .. 1 (the same answer)"
    not_this: ClassVar[str] = "Not quality: it does not ask which of the answers is right, nor whether either is."
    good: ClassVar[Good] = "knowledge"

    name: Literal["similarity"] = "similarity"
    before: Path
    """SUITE.samples.jsonl of the earlier evaluation, with texts (--show-forget-text)."""

    @property
    def asked(self) -> Judge:
        return Earlier(samples=self.before)
