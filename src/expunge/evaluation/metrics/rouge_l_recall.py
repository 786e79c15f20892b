"""ROUGE-L recall: share of the expected answer's words that the model writes, in order."""

import re
from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, no_answer
from expunge.evaluation.rouge import rouge


def rouge_l_recall(expected: str, generated: str) -> float:
    """Computes the length of the longest common subsequence of words, over the number of expected words (Porter stemmer)."""
    if expected == generated:
        return 1.0
    return rouge("rougeL", expected, generated, stemmer=True).recall


class RougeLRecall(Metric):
    """ROUGE-L recall of the greedy answer against the response."""

    formula: ClassVar[str] = "|longest common subsequence(response, generated)| / |response|, in stemmed words"
    source: ClassVar[str] = "Lin 2004, equal to rouge-score; with stemmer and greedy decoding as in TOFU (arXiv 2401.06121)"
    span: ClassVar[str] = "0 (no common word in order) .. 1 (all words of the response, in order)"
    not_this: ClassVar[str] = (
        "Not a sign of a right answer: the right template around a wrong name scores high, and long rambling raises recall. "
        "It reads only a-z and 0-9: a response in another script is unscored."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["rouge_l_recall"] = "rouge_l_recall"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"generated"})

    def score(self, row: Row) -> float | Unscored:
        if row.generated is None:
            return no_answer(row)
        if not re.search("[a-z0-9]", row.example.response.lower()):
            return Unscored("the response has no word in a-z or 0-9, the only ones that ROUGE reads")
        return rouge_l_recall(row.example.response, row.generated)
