"""Prompt cut: share of questions whose beginning did not fit into the model's positions."""

from typing import ClassVar, Literal

from expunge.data.example import Example
from expunge.evaluation.metrics.base import Good, Metric, Need, Row


class PromptCut(Metric):
    """Share of prompts whose beginning was cut off because the model takes no more tokens."""

    formula: ClassVar[str] = "mean over examples of [prompt and answer have more tokens than the model takes]"
    source: ClassVar[str] = "own; what is cut is what lm-eval cuts: the beginning, the start token included"
    span: ClassVar[str] = "0 (every question was whole) .. 1 (none was)"
    not_this: ClassVar[str] = (
        "Not a property of what the model knows: it tells how far the scores beside it can be read. With shots, they go first."
    )
    good: ClassVar[Good] = "never"

    name: Literal["prompt_cut"] = "prompt_cut"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def needs_of(self, example: Example) -> frozenset[Need]:
        return frozenset()

    def score(self, row: Row) -> float:
        return float(row.cut)
