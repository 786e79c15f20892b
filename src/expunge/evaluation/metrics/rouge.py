"""ROUGE with configurable kind, measure and stemming."""

import re
from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, no_answer
from expunge.evaluation.rouge import Kind, rouge


class Rouge(Metric):
    """ROUGE of the greedy answer against the response. On the continuation of a forget text: verbatim ROUGE."""

    formula: ClassVar[str] = "F1, recall or precision of common n-grams (rouge1, rouge2) or longest common subsequence (rougeL)"
    source: ClassVar[str] = "Lin 2004, equal to rouge-score; default: MUSE's (arXiv 2407.06460), ROUGE-L F1 without stemmer"
    span: ClassVar[str] = "0 (nothing in common) .. 1 (the same words)"
    not_this: ClassVar[str] = (
        "Not a sign of a right answer: the right template around a wrong name scores high. It reads only a-z and 0-9. "
        "`rouge_l_recall` is TOFU's; never compare the two."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["rouge"] = "rouge"
    kind: Kind = "rougeL"
    """Single words, pairs of words, or the longest common subsequence."""
    measure: Literal["f1", "recall", "precision"] = "f1"
    """Harmonic mean of the other two, recall over the response's words, or precision over the answer's."""
    stemmer: bool = False
    """Compare Porter stems."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"generated"})

    def score(self, row: Row) -> float | Unscored:
        if row.generated is None:
            return no_answer(row)
        if not re.search("[a-z0-9]", row.expected.lower()):
            return Unscored("the response has no word in a-z or 0-9, the only ones that ROUGE reads")
        found = rouge(self.kind, row.expected, row.generated, stemmer=self.stemmer)
        return {"f1": found.f1, "recall": found.recall, "precision": found.precision}[self.measure]
