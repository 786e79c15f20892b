"""CE-U: trains towards the model's own distribution with the label removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.methods.training.base import Batch
from expunge.methods.training.retain import RetainLoss, WithRetain

if TYPE_CHECKING:
    from torch import Tensor, nn


class CEU(WithRetain):
    """L_forget = mean over rows of the row's mean  CE( softmax(z with z_y = -inf),  softmax(z) ),  the target without gradient.

    The probability of the label moves to the model's other predictions, and the gradient is bounded.
    The first `skip` tokens of an answer are left out, since the opening of a sentence carries no fact. A row whose answer is
    not longer than `skip` keeps its last token, so that one-token answers are forgotten too.
    """

    paper: ClassVar[str] = "Yang 2025 (CE-U), arXiv 2503.01224"
    formula: ClassVar[str] = "L = gamma CE(softmax(z, z_y = -inf), softmax(z))(forget) + alpha retain"
    cost: ClassVar[str] = "forward and backward of forget rows; nothing beside the model"
    purpose: ClassVar[str] = "facts, without data to keep"
    weakness: ClassVar[str] = "forgets neighbours too"

    name: Literal["ce_u"] = "ce_u"
    retain_loss: RetainLoss = "none"
    """Loss on the retain set; the published method uses none."""
    skip: int = Field(1, ge=0)
    """Number of tokens at the start of an answer that are left out."""

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        import torch

        from expunge.models.logprobs import labelled_logits, sequence_sum

        labelled = labelled_logits(model, batch.forget)
        logits_NV = labelled.logits_NV.float()
        target_NV = logits_NV.detach().scatter(1, labelled.labels_N[:, None], -torch.inf).softmax(-1)
        # The label's own term is 0 * log p; masking it keeps 0 * -inf out of the backward pass.
        logq_NV = logits_NV.log_softmax(-1).masked_fill(target_NV == 0, 0.0)
        ce_N = -(target_NV * logq_NV).sum(-1)
        keep_N = _kept(labelled.row_N, labelled.rows, self.skip).to(ce_N.dtype)
        # A product and not a selection: how many are selected would have to be asked of the device.
        kept_B = sequence_sum(keep_N, labelled.row_N, labelled.rows)
        return (sequence_sum(ce_N * keep_N, labelled.row_N, labelled.rows) / kept_B).mean()


def _kept(row_N: Tensor, rows: int, skip: int) -> Tensor:
    """Marks the answer tokens that count: those after the first `skip` of the row, or the last one of a shorter row."""
    import torch

    from expunge.models.logprobs import sequence_sum

    count_B = sequence_sum(torch.ones_like(row_N), row_N, rows)
    start_B = count_B.cumsum(0) - count_B
    place_N = torch.arange(len(row_N), device=row_N.device) - start_B[row_N]
    return place_N >= torch.minimum(torch.full_like(count_B, skip), count_B - 1)[row_N]
