"""Exact match: whether the greedy answer gives the right number, or exactly the right phrase."""

from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, no_answer
from expunge.evaluation.metrics.normalization import ARTICLES, words
from expunge.evaluation.metrics.numbers import stated_number


class ExactMatch(Metric):
    """One if the greedy answer states the right number, or is one of the right answers word for word; else zero.

    `reading: text` compares normalized words with each of the right answers (MLQA; the language is the attribute `language`, or
    English). `reading: number` compares the stated numbers, exactly and as Decimal (GSM8K).
    """

    formula: ClassVar[str] = (
        "text: max over right answers of [words(generated) = words(right)]; number: [number(generated) = number(response)]"
    )
    source: ClassVar[str] = (
        "text: MLQA's official script (Lewis et al. 2020, arXiv 1910.07475), normalization by language; number: Cobbe et al. "
        "2021 (arXiv 2110.14168), the number after `The answer is` or `####`, else the last one"
    )
    span: ClassVar[str] = "0 or 1 for a sample"
    not_this: ClassVar[str] = (
        "text: a longer answer that contains the right phrase is wrong (see `containment`). number: the way to it is not read; a "
        "right number after a wrong solution counts."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["exact_match"] = "exact_match"
    reading: Literal["text", "number"] = "text"
    """What is compared."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"generated"})

    def score(self, row: Row) -> float | Unscored:
        if row.generated is None:
            return no_answer(row)
        if self.reading == "number":
            right = stated_number(row.example.response.rpartition("####")[2])
            return Unscored("the response states no number") if right is None else float(stated_number(row.generated) == right)
        language = str(row.example.attributes.get("language", "en"))
        if language not in ARTICLES:
            return Unscored(f"there is no official normalization for the language {language}")
        answer = words(row.generated, language)
        return float(any(answer == words(right, language) for right in (row.example.response, *row.example.paraphrases)))
