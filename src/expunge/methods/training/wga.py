"""WGA: gradient ascent with each token weighted by its probability."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.methods.training.base import Batch
from expunge.methods.training.retain import WithRetain

if TYPE_CHECKING:
    from torch import Tensor, nn


class WGA(WithRetain):
    """L_forget = -mean over rows of the row's mean  p(y_t)^beta (-log p(y_t)),  the weight p^beta without gradient.

    A token that is already improbable has almost no gradient, so the ascent is bounded in effect. beta = 0 is gradient
    difference.
    """

    paper: ClassVar[str] = "Wang et al. 2025, arXiv 2502.19301"
    formula: ClassVar[str] = "L = -gamma mean_t p^beta CE_t(forget) + alpha CE(retain)"
    cost: ClassVar[str] = "forward and backward of forget and retain rows; nothing beside the model"
    purpose: ClassVar[str] = "facts: ascent that spends itself on what is still known"
    weakness: ClassVar[str] = "sensitive to its weight beta"

    name: Literal["wga"] = "wga"
    beta: float = Field(1.0, ge=0)
    """Power of the probability in the weight."""

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        from expunge.models.logprobs import labelled_logits, sequence_mean, token_logprobs

        labelled = labelled_logits(model, batch.forget)
        logp_N = token_logprobs(labelled)
        weight_N = (self.beta * logp_N.detach()).exp()
        return sequence_mean(weight_N * logp_N, labelled.row_N, labelled.rows).mean()
