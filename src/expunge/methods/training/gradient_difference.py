"""Gradient difference: maximizes the loss on the forget set and minimizes it on the retain set."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from expunge.methods.training.base import Batch
from expunge.methods.training.retain import WithRetain, cross_entropy

if TYPE_CHECKING:
    from torch import Tensor, nn


class GradientDifference(WithRetain):
    """L = -forget_weight * CE(forget) + retain_weight * retain term.

    The forget term is unbounded below, as in gradient ascent; the retain term slows the damage but does not prevent it.
    """

    paper: ClassVar[str] = "Liu et al. 2022, arXiv 2203.12817; as baseline in Maini et al. 2024 (TOFU), arXiv 2401.06121"
    formula: ClassVar[str] = "L = -gamma CE(forget) + alpha CE(retain)"
    cost: ClassVar[str] = "forward and backward of forget and retain rows; nothing beside the model"
    purpose: ClassVar[str] = "facts, with data to keep: often nearest to a retrained model"
    weakness: ClassVar[str] = "over-forgets when run too long"

    name: Literal["gradient_difference"] = "gradient_difference"

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        return -cross_entropy(model, batch.forget)
