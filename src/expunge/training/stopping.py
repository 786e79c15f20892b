"""Measures how far a run has forgotten, and decides when to stop and when to train on the retain rows only.

A run should forget until the forget answers are as improbable as those of rows that the model never saw, and then stop. Most
methods also lose some of the retain set, and further steps of both terms would restore it only while forgetting too much.
Therefore, whenever the retain answers are less probable than allowed, only the retain terms of the loss are trained until the
next check.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from expunge.methods.training.base import TrainingMethod
from expunge.training.data import TrainingData
from expunge.training.reference import mean_answer_probability
from expunge.training.settings import Training


class Verdict(NamedTuple):
    stopped: str | None = None
    """Why the run ends, or None."""
    resting: bool = False
    """The terms that are not about the retain rows rest until the next check."""


@dataclass(frozen=True)
class Watch:
    """The measurements of `stop_when_unknown`: mean answer probabilities of forget, holdout and retain rows."""

    data: TrainingData
    device: torch.device
    least_kept: float | None
    """Retain probability at which a run may end; nothing where the method has no retain rows."""

    @classmethod
    def of(
        cls, model: nn.Module, method: TrainingMethod, data: TrainingData, training: Training, device: torch.device
    ) -> "Watch | None":
        """Made with the start model; nothing where the run does not stop by itself."""
        if not training.stop_when_unknown:
            return None
        kept = None
        if "retain" in method.row_sets and data.retain and training.keep_retain > 0:
            kept = training.keep_retain * mean_answer_probability(model, data.retain, data.pad_id, device)
        return cls(data, device, kept)

    def check(self, model: nn.Module) -> Verdict:
        kept = None
        if self.least_kept is not None:
            kept = mean_answer_probability(model, self.data.retain, self.data.pad_id, self.device)
            if kept < self.least_kept:
                return Verdict(resting=True)
        known = mean_answer_probability(model, self.data.forget, self.data.pad_id, self.device)
        never = mean_answer_probability(model, self.data.holdout, self.data.pad_id, self.device)
        if known > never:
            return Verdict()
        reason = f"forget answers (mean probability {known:.3f}) are no more probable than holdout answers ({never:.3f})"
        return Verdict(reason if kept is None else f"{reason}, and retain answers are kept ({kept:.3f})")
