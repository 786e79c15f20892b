"""Fine-tuning: plain cross-entropy. Makes the model to unlearn from, and the retain-only model to compare with."""

from typing import ClassVar, Literal

from torch import nn

from expunge.methods.base import Batch, Loss, TrainingMethod
from expunge.methods.retain import cross_entropy


class FineTune(TrainingMethod):
    """Learn the rows: mean over rows of the row's mean -log p(label), in nats per token. Not an unlearning method."""

    paper: ClassVar[str] = "maximum likelihood"
    formula: ClassVar[str] = "L = CE(data)"
    cost: ClassVar[str] = "one forward and backward; nothing beside the model"

    name: Literal["finetune"] = "finetune"

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        value = cross_entropy(model, batch.forget)
        return Loss(value, {"data": value.detach()})
