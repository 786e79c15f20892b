"""SimNPO: NPO without a reference model, with length-normalized log-probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.methods.training.base import Batch
from expunge.methods.training.retain import WithRetain

if TYPE_CHECKING:
    from torch import Tensor, nn


class SimNPO(WithRetain):
    """L_forget = mean over rows of  -(2/beta) log sigmoid( -(beta/n) S - margin ),   S = sum_t log p(y_t), n tokens.

    The length normalization replaces the reference model: short and long answers get gradients of the same size, and improbable
    answers get small ones. Log-probabilities, not logits (the MUSE release uses raw logits by mistake).
    """

    paper: ClassVar[str] = "Fan et al. 2024, arXiv 2410.07163, eq. 4"
    formula: ClassVar[str] = "L = -(2 gamma/beta) log sigmoid(-(beta/|y|) log p(forget) - margin) + alpha CE(retain)"
    cost: ClassVar[str] = "forward and backward of forget and retain rows; nothing beside the model"
    purpose: ClassVar[str] = "as npo, without reference values; fair to long and short answers"
    weakness: ClassVar[str] = "leaves traces that statistics still find"

    name: Literal["simnpo"] = "simnpo"
    forget_weight: float = Field(0.125, ge=0)
    """Factor of the forget term (gamma in open-unlearning's configuration)."""
    beta: float = Field(4.5, gt=0)
    """Inverse temperature of the mean log-probability."""
    margin: float = 0.0
    """How improbable, in beta-scaled nats per token, an answer must be before its gradient fades (gamma in the paper; delta in
    open-unlearning is margin / beta)."""

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        from torch.nn.functional import logsigmoid

        from expunge.models.logprobs import labelled_logits, sequence_mean, token_logprobs

        labelled = labelled_logits(model, batch.forget)
        mean_logp_B = sequence_mean(token_logprobs(labelled), labelled.row_N, labelled.rows)
        return -2 / self.beta * logsigmoid(-self.beta * mean_logp_B - self.margin).mean()
