"""KL minimization: maximizes the loss on the forget set, and keeps the retain distribution close to the start model's."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from expunge.methods.training.base import Batch
from expunge.methods.training.retain import WithRetain, cross_entropy

if TYPE_CHECKING:
    from torch import Tensor, nn


class KLMinimization(WithRetain):
    """L = -forget_weight * CE(forget) + retain_weight * KL(start || model)(retain), at answer tokens only.

    Comparing whole distributions preserves more than the retain labels alone. The start model is represented by cached hidden
    states, not by a second model.
    """

    paper: ClassVar[str] = "Maini et al. 2024 (TOFU), arXiv 2401.06121, section 4"
    formula: ClassVar[str] = "L = -gamma CE(forget) + alpha KL(start || model)(retain)"
    cost: ClassVar[str] = (
        "forward and backward of forget and retain rows; hidden states of the retain answers and one copy of the head"
    )
    purpose: ClassVar[str] = "as gradient_difference, held to the start model's own answers"
    weakness: ClassVar[str] = "over-forgets when run too long"

    name: Literal["kl_minimization"] = "kl_minimization"
    retain_loss: Literal["kl"] = "kl"
    """Fixed, since this retain term defines the method."""

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        return -cross_entropy(model, batch.forget)
