"""Unique-token ratio: share of distinct words in the generated answer."""

from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, no_answer

EMPTY = Unscored("the model answered nothing")


class UniqueTokenRatio(Metric):
    """Distinct words over all words of the greedy answer, separated by spaces. An empty answer is unscored, not 0."""

    formula: ClassVar[str] = "|set of words(generated)| / |words(generated)|"
    source: ClassVar[str] = (
        "type-token ratio; ECO (arXiv 2406.07933) takes it over model tokens, whose number depends on the model"
    )
    span: ClassVar[str] = "above 0 (one word over and over) .. 1 (no word twice)"
    not_this: ClassVar[str] = "Not quality, and not comparable between lengths: a longer text repeats more words."
    good: ClassVar[Good] = "always"

    name: Literal["unique_token_ratio"] = "unique_token_ratio"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"generated"})

    def score(self, row: Row) -> float | Unscored:
        if row.generated is None:
            return no_answer(row)
        words = row.generated.split()
        return len(set(words)) / len(words) if words else EMPTY
