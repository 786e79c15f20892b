"""Repetition: share of repeated n-grams in the generated answer."""

from typing import ClassVar, Literal

from pydantic import Field

from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, no_answer


def repeated_share(words: list[str], n: int) -> float | None:
    """Computes 1 - distinct n-grams / n-grams; None for fewer than n words."""
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return 1.0 - len(set(grams)) / len(grams) if grams else None


class Repetition(Metric):
    """Share of the n-grams of the greedy answer that occurred in it before. Answers of fewer than n words are unscored."""

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
            return no_answer(row)
        share = repeated_share(row.generated.split(), self.n)
        return Unscored(f"the answer has fewer than {self.n} words") if share is None else share


class Repetition1(Repetition):
    """Share of the words of the greedy answer that occurred in it before."""

    source: ClassVar[str] = "Ext-Sub's n-gram repetition (Hu et al. 2024, arXiv 2308.08090), n = 1, on words instead of tokens"

    name: Literal["repetition_1"] = "repetition_1"  # type: ignore[assignment]
    n: Literal[1] = 1
    """Single words."""


class Repetition2(Repetition):
    """Share of the pairs of words of the greedy answer that occurred in it before."""

    source: ClassVar[str] = "Ext-Sub's n-gram repetition (Hu et al. 2024, arXiv 2308.08090), n = 2, on words instead of tokens"

    name: Literal["repetition_2"] = "repetition_2"  # type: ignore[assignment]
    n: Literal[2] = 2
    """Pairs of words."""


class Repetition3(Repetition):
    """Share of the triples of words of the greedy answer that occurred in it before."""

    source: ClassVar[str] = "Ext-Sub's n-gram repetition (Hu et al. 2024, arXiv 2308.08090), n = 3, on words instead of tokens"

    name: Literal["repetition_3"] = "repetition_3"  # type: ignore[assignment]
    n: Literal[3] = 3
    """Triples of words."""
