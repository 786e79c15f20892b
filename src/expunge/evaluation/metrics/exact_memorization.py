"""Exact memorization: share of the response's tokens that the model predicts."""

from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good, Metric, Row, Unscored, unscorable


class ExactMemorization(Metric):
    """Share of response tokens that are the most probable one given the prompt and the true tokens before them."""

    formula: ClassVar[str] = "(1/|a|) sum over t of [argmax p(.|q, a<t) = a_t], the end token left out"
    source: ClassVar[str] = "Tirumala et al. 2022 (arXiv 2205.10770); open-unlearning's `exact_memorization`"
    span: ClassVar[str] = "0 (no token foreseen) .. 1 (every token)"
    not_this: ClassVar[str] = (
        "Not a sign that the fact is known: true tokens are given all along, and words of the template are foreseen by any model "
        "of the language (0.59 for a TOFU model that never saw the answers)."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["exact_memorization"] = "exact_memorization"

    def score(self, row: Row) -> float | Unscored:
        text = row.answer.without_end()
        return unscorable(text) or float(text.hit.mean())
