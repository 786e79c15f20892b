"""UNDIAL: distil from the start model with the label's logit pushed down."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from expunge.methods.base import Batch, Loss, Need
from expunge.methods.retain import WithRetain
from expunge.models.logprobs import labelled_logits, sequence_mean


class UNDIAL(WithRetain):
    """L_forget = mean over rows of the row's mean  CE( softmax(z_start - beta onehot(y)),  softmax(z) ).

    A bounded target: the start model's own distribution with the memorized token made less likely by beta nats before
    normalization, at answer tokens only (the release averages over prompt and padding and lets the label -100 index
    the vocabulary: open_unlearning bug B1).
    """

    paper: ClassVar[str] = "Dong et al. 2024, arXiv 2402.10052"
    formula: ClassVar[str] = "L = gamma CE(softmax(z_start - beta onehot(y)), softmax(z))(forget) + alpha retain"
    cost: ClassVar[str] = "forward and backward of forget rows; hidden states of the forget answers and one copy of the head"
    learning_rate: ClassVar[float] = 1e-4

    name: Literal["undial"] = "undial"
    retain_weight: float = 0.0
    """Factor of the retain term (alpha); 0 in the published setting."""
    beta: float = Field(10.0, gt=0)
    """How far the label's logit is pushed down, in nats."""

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs | {"forget_hidden"}

    @property
    def uses_retain(self) -> bool:
        return self.retain_weight != 0 and super().uses_retain

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        labelled = labelled_logits(model, batch.forget)
        target_NV = batch.start_logits(batch.forget).float()
        target_NV.scatter_add_(1, labelled.labels_N[:, None], target_NV.new_full((len(labelled.labels_N), 1), -self.beta))
        ce_N = -(target_NV.softmax(-1) * labelled.logits_NV.float().log_softmax(-1)).sum(-1)
        return self.combine(sequence_mean(ce_N, labelled.row_N, labelled.rows).mean(), model, batch)
