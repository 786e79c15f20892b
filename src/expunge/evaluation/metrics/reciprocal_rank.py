"""Reciprocal rank of the answer's tokens among the model's predictions."""

from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, unscorable


class ReciprocalRank(Metric):
    """Mean over the response's tokens of 1 / (number of tokens of the vocabulary that are more probable, plus one).

    It complements the probability: a model trained away from an answer gives it a low probability, but often still ranks it
    second, and one that over-forgot ranks it lower than a model that never saw it.
    """

    formula: ClassVar[str] = "(1/|a|) sum over t of 1 / (1 + #{v : p(v|q, a<t) > p(a_t|q, a<t)}), the end token left out"
    source: ClassVar[str] = "mean reciprocal rank, the standard measure of retrieval (Voorhees 1999), over the answer's tokens"
    span: ClassVar[str] = "0 (every token far down the list) .. 1 (every token is the most probable one)"
    not_this: ClassVar[str] = (
        "Not a sign that the fact is known: true tokens are given all along, and words of the template rank first in any model "
        "of the language. Compare with a model that never saw the answer."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["reciprocal_rank"] = "reciprocal_rank"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"answer", "distribution"})

    def score(self, row: Row) -> float | Unscored:
        text = row.answer.without_end()
        if reason := unscorable(text):
            return reason
        if text.distribution is None:
            return Unscored("the ranks of the answer's tokens were not computed")
        return float((1.0 / (1.0 + text.distribution.rank)).mean())
