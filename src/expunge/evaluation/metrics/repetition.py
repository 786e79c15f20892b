"""Repetition: does the model go round in circles?"""

from typing import ClassVar, Literal

from pydantic import Field

from expunge.evaluation.metrics.base import NO_ANSWER, Good, Metric, Need, Row, Unscored


def repeated_share(words: list[str], n: int) -> float | None:
    """1 - distinct n-grams / n-grams; None for fewer than n words."""
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return 1.0 - len(set(grams)) / len(grams) if grams else None


class Repetition(Metric):
    """Share of the n-grams of the greedy answer that stood in it before. Answers of fewer than n words are unscored."""

    formula: ClassVar[str] = "1 - |distinct n-grams(generated)| / |n-grams(generated)|, in words"
    source: ClassVar[str] = "seq-rep-4 of Welleck et al. 2020 (arXiv 1908.04319), on words between blanks"
    span: ClassVar[str] = "0 (no n-gram twice) .. nearly 1 (one phrase over and over)"
    not_this: ClassVar[str] = "Not fluency: word salad has none. A model that stops at once is unscored here, not good."
    good: ClassVar[Good] = "never"

    name: Literal["repetition"] = "repetition"
    n: int = Field(4, ge=1)
    """Words of an n-gram."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"generated"})

    def score(self, row: Row) -> float | Unscored:
        if row.generated is None:
            return NO_ANSWER
        share = repeated_share(row.generated.split(), self.n)
        return Unscored(f"the answer has fewer than {self.n} words") if share is None else share
