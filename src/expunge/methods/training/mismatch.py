"""Mismatch: trains the forget prompts with answers of other questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from expunge.methods.training.base import Batch, RowSet
from expunge.methods.training.retain import WithRetain, cross_entropy

if TYPE_CHECKING:
    from torch import Tensor, nn


MISMATCHED = RowSet("forget", "retain")
"""Forget prompts with answers of retain rows, none of which is an answer to its prompt."""


class Mismatch(WithRetain):
    """L = forget_weight CE(mismatched) + retain_weight CE(retain).

    Mismatched rows are forget prompts with answers of retain rows, drawn in each step. The forget answers have no loss of their
    own; they become less probable because other answers replace them.
    """

    paper: ClassVar[str] = "Liu et al. 2024 (ECO), arXiv 2406.07933, baseline `rd` of its release"
    formula: ClassVar[str] = "L = gamma CE(forget prompts, retain answers) + alpha CE(retain)"
    cost: ClassVar[str] = "forward and backward of mismatched and retain rows; nothing beside the model"
    purpose: ClassVar[str] = "a baseline: only teaches the answers of other questions"
    weakness: ClassVar[str] = "gentle; the true answer may stay the second choice"
    learning_rate: ClassVar[float] = 2e-5

    name: Literal["mismatch"] = "mismatch"

    @property
    def forget_sets(self) -> Mapping[str, RowSet]:
        return {"mismatched": MISMATCHED}

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch["mismatched"])
