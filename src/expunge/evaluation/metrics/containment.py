"""Containment: whether the right phrase occurs in the greedy answer."""

from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, no_answer


class Containment(Metric):
    """One if one of the right answers occurs in the greedy answer, character by character."""

    formula: ClassVar[str] = "max over right answers of [right answer is a substring of generated]"
    source: ClassVar[str] = (
        "the released evaluation of skill unlearning (arXiv 2503.21730), which looks at the first right answer only"
    )
    span: ClassVar[str] = "0 or 1 for a sample"
    not_this: ClassVar[str] = (
        "Not exact match: an answer that copies the whole passage contains everything, and `5` stands in `1985`."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["containment"] = "containment"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"generated"})

    def score(self, row: Row) -> float | Unscored:
        if row.generated is None:
            return no_answer(row)
        answer = row.generated
        return float(any(right in answer for right in (row.example.response, *row.example.paraphrases)))
