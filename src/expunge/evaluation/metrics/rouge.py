"""ROUGE with configurable kind, measure and stemming."""

import re
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal

from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, no_answer

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


@cache
def rouge_scorer(kind: str, *, stemmer: bool) -> "RougeScorer":
    """Returns rouge-score's scorer, imported on first use, which takes three seconds."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=stemmer)


def rouge_f1(kind: str, reference: str, answer: str) -> float:
    """Computes F1 without stemmer, 0 .. 1."""
    return float(rouge_scorer(kind, stemmer=False).score(reference, answer)[kind].fmeasure)


class Rouge(Metric):
    """ROUGE of the greedy answer against the response. On the continuation of a forget text: verbatim ROUGE."""

    formula: ClassVar[str] = "F1, recall or precision of common n-grams (rouge1, rouge2) or longest common subsequence (rougeL)"
    source: ClassVar[str] = "Lin 2004, through rouge-score; default: MUSE's (arXiv 2407.06460), ROUGE-L F1 without stemmer"
    span: ClassVar[str] = "0 (nothing in common) .. 1 (the same words)"
    not_this: ClassVar[str] = (
        "Not a sign of a right answer: the right template around a wrong name scores high. rouge-score reads only a-z and 0-9. "
        "`rouge_l_recall` is TOFU's; never compare the two."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["rouge"] = "rouge"
    kind: Literal["rouge1", "rouge2", "rougeL"] = "rougeL"
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
            return Unscored("the response has no word in a-z or 0-9, the only ones that rouge-score reads")
        found = rouge_scorer(self.kind, stemmer=self.stemmer).score(row.expected, row.generated)[self.kind]
        return float({"f1": found.fmeasure, "recall": found.recall, "precision": found.precision}[self.measure])
