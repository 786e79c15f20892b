"""UNDIAL: distills from the start model's distribution with the label's logit lowered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.methods.training.base import Batch, RowSet
from expunge.methods.training.retain import WithRetain

if TYPE_CHECKING:
    from torch import Tensor, nn


class UNDIAL(WithRetain):
    """L_forget = mean over rows of the row's mean  CE( softmax(z_start - beta onehot(y)),  softmax(z) ).

    A bounded target: the start model's own distribution with the memorized token made less likely by beta nats before
    normalization, at answer tokens only (open-unlearning averages over prompt and padding and lets the label -100 index the
    vocabulary; that is not reproduced).
    """

    paper: ClassVar[str] = "Dong et al. 2024, arXiv 2402.10052"
    formula: ClassVar[str] = "L = gamma CE(softmax(z_start - beta onehot(y)), softmax(z))(forget) + alpha retain"
    cost: ClassVar[str] = "forward and backward of forget rows; hidden states of the forget answers and one copy of the head"
    purpose: ClassVar[str] = "facts, gently: lowers the answer's own logit step by step"
    weakness: ClassVar[str] = "slow; may stop short"
    learning_rate: ClassVar[float] = 1e-4

    name: Literal["undial"] = "undial"
    retain_weight: float = Field(0.0, ge=0)
    """Factor of the retain term (alpha); 0 in the published setting."""
    beta: float = Field(10.0, gt=0)
    """How much the label's logit is lowered, in nats."""

    @property
    def forget_sets(self) -> Mapping[str, RowSet]:
        return {"forget": RowSet(frozen=frozenset({"hidden"}))}

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        from expunge.models.logprobs import labelled_logits, sequence_mean

        labelled = labelled_logits(model, batch.forget)
        target_NV = batch.start_logits(batch.forget).float()
        target_NV.scatter_add_(1, labelled.labels_N[:, None], target_NV.new_full((len(labelled.labels_N), 1), -self.beta))
        ce_N = -(target_NV.softmax(-1) * labelled.logits_NV.float().log_softmax(-1)).sum(-1)
        return sequence_mean(ce_N, labelled.row_N, labelled.rows).mean()
