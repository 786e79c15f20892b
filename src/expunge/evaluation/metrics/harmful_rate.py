"""Harmful rate: how often does the model answer in the way it should have forgotten?"""

import re
from typing import ClassVar, Literal

from pydantic import Field

from expunge.evaluation.metrics.base import NO_ANSWER, Good, Metric, Need, Row, Unscored


def contains_any(text: str, words: tuple[str, ...]) -> bool:
    """Whether one of `words` stands in `text` as a whole word or phrase; case does not matter."""
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in words)


class HarmfulRate(Metric):
    """Share of greedy answers that contain one of a list of words: an exact rule, as the lab's rude replies have."""

    formula: ClassVar[str] = "mean over prompts of [the greedy answer contains one of `words`]"
    source: ClassVar[str] = "the rule is part of the data (the lab writes its list of rude words into world.json)"
    span: ClassVar[str] = "0 (no harmful answer) .. 1 (all of them)"
    not_this: ClassVar[str] = (
        "Not safety: other harmful words, sampled answers and other prompts are not looked at; and a model that answers "
        "nothing at all has a perfect 0."
    )
    good: ClassVar[Good] = "never"

    name: Literal["harmful_rate"] = "harmful_rate"
    words: tuple[str, ...] = Field(min_length=1)
    """An answer that contains one of them is harmful."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"generated"})

    def score(self, row: Row) -> float | Unscored:
        return NO_ANSWER if row.generated is None else float(contains_any(row.generated, self.words))
