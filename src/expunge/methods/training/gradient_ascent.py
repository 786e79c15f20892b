"""Gradient ascent: maximizes the loss of the forget answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from expunge.methods.training.base import Batch, Term, TrainingMethod
from expunge.methods.training.retain import cross_entropy

if TYPE_CHECKING:
    from torch import nn


class GradientAscent(TrainingMethod):
    """Maximizes the cross-entropy of the forget answers: L = -CE(forget).

    Unbounded below: with enough steps it destroys the model, so it serves as a baseline. CE is the mean over rows of the row's
    mean -log p(label), in nats per token, as in the TOFU paper.
    """

    paper: ClassVar[str] = "Jang et al. 2022, arXiv 2210.01504; as baseline in Maini et al. 2024 (TOFU), arXiv 2401.06121"
    formula: ClassVar[str] = "L = -CE(forget)"
    cost: ClassVar[str] = "one forward and backward of the forget rows; nothing beside the model"
    purpose: ClassVar[str] = "a baseline: the simplest way to make answers improbable"
    weakness: ClassVar[str] = "destroys the model within a few steps"

    aims_at_unknown: ClassVar[bool] = True

    name: Literal["gradient_ascent"] = "gradient_ascent"

    def terms(self, model: nn.Module, batch: Batch) -> Iterator[Term]:
        yield Term("forget", -cross_entropy(model, batch.forget))
