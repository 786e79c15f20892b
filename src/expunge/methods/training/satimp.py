"""SatImp: gradient ascent with tokens weighted by saturation and importance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.methods.training.base import Batch
from expunge.methods.training.retain import WithRetain

if TYPE_CHECKING:
    from torch import Tensor, nn


class SatImp(WithRetain):
    """L_forget = -mean over rows of the row's mean  p^beta1 (1 - p)^beta2 (-log p),  the weight without gradient.

    p^beta1 lowers the weight of tokens that are forgotten already, (1 - p)^beta2 that of tokens the model predicts with
    certainty.
    """

    paper: ClassVar[str] = "Yang et al. 2025, arXiv 2505.11953"
    formula: ClassVar[str] = "L = -gamma mean_t p^beta1 (1-p)^beta2 CE_t(forget) + alpha CE(retain)"
    cost: ClassVar[str] = "forward and backward of forget and retain rows; nothing beside the model"
    purpose: ClassVar[str] = "facts: weights tokens by how well and how surely they are known"
    weakness: ClassVar[str] = "two weights to tune"

    name: Literal["satimp"] = "satimp"
    forget_weight: float = Field(0.1, ge=0)
    """Factor of the forget term (gamma)."""
    beta1: float = Field(5.0, ge=0)
    """Power of p: saturation."""
    beta2: float = Field(1.0, ge=0)
    """Power of 1 - p: importance."""

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        from expunge.models.logprobs import labelled_logits, sequence_mean, token_logprobs

        labelled = labelled_logits(model, batch.forget)
        logp_N = token_logprobs(labelled)
        p_N = logp_N.detach().exp()
        weight_N = p_N**self.beta1 * (1 - p_N) ** self.beta2
        return sequence_mean(weight_N * logp_N, labelled.row_N, labelled.rows).mean()
