"""Fine-tuning: trains by cross-entropy. Makes the model to unlearn from, and the retain-only model to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from expunge.methods.training.base import Batch, Term, TrainingMethod
from expunge.methods.training.retain import cross_entropy

if TYPE_CHECKING:
    from torch import nn


class FineTune(TrainingMethod):
    """Minimizes the mean over rows of the row's mean -log p(label), in nats per token. Not an unlearning method."""

    paper: ClassVar[str] = "maximum likelihood"
    formula: ClassVar[str] = "L = CE(data)"
    cost: ClassVar[str] = "one forward and backward; nothing beside the model"

    name: Literal["finetune"] = "finetune"

    def terms(self, model: nn.Module, batch: Batch) -> Iterator[Term]:
        yield Term("data", cross_entropy(model, batch.forget))
