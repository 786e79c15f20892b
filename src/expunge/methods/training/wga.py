"""WGA: gradient ascent with each token weighted by its probability."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.methods.training.base import Batch
from expunge.methods.training.retain import WithRetain

if TYPE_CHECKING:
    from torch import Tensor, nn

    from expunge.data.encode import Tokens


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
    skip_copied: bool = False
    """Leave out answer tokens that the prompt contains, such as a person's name: they carry no fact, and with beta > 0 they would
    take most of the gradient once the fact is improbable."""

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        from expunge.models.logprobs import labelled_logits, sequence_mean, token_logprobs

        labelled = labelled_logits(model, batch.forget)
        logp_N = token_logprobs(labelled)
        weight_N = (self.beta * logp_N.detach()).exp()
        if self.skip_copied:
            weight_N = weight_N * ~copied(batch.forget)
        return sequence_mean(weight_N * logp_N, labelled.row_N, labelled.rows).mean()


def copied(tokens: Tokens) -> Tensor:
    """Tells for each labelled token, in row-major order [N], whether it also stands before the first labelled one of its row."""
    labelled_BT = tokens.labels_BT >= 0
    prompt_BT = (labelled_BT.cumsum(1) == 0) & (tokens.attention_mask_BT == 1)
    same_BTT = (tokens.labels_BT[:, :, None] == tokens.input_ids_BT[:, None, :]) & prompt_BT[:, None, :]
    return same_BTT.any(-1)[labelled_BT]
