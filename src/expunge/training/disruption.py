"""Measures how much a run changes the model on neutral text, and ends it at a budget, so that methods can be compared.

    disruption = mean over the tokens of neutral texts of KL(start model || model), in nats per token

The start model is represented by its final hidden states and one copy of its head, computed once before the loop. (RepSelect,
arXiv 2606.17168, stops at 0.01 on WikiText.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from expunge.data.encode import Encoded, collate
from expunge.errors import ExpungeError
from expunge.models.logprobs import FrozenHead, kl_divergence, labelled_hidden, labelled_logits
from expunge.training.data import TrainingData
from expunge.training.settings import Training
from expunge.training.way import Way, copies

ROWS = 16
"""Texts of one forward pass."""
HALVINGS = 10
"""The last point within the budget is found to 1/1024 of the way between two checks."""


@dataclass
class Disruption:
    """The measurement, and the budget if there is one."""

    batches: list[Sequence[Encoded]]
    pad_id: int
    device: torch.device
    hidden: list[Tensor]
    """Final hidden states of the start model, by batch."""
    head: FrozenHead
    budget: float | None
    marked: list[Tensor] = field(default_factory=list)
    """The trained weights at the last check."""

    @classmethod
    def of(cls, model: nn.Module, data: TrainingData, training: Training, device: torch.device) -> "Disruption | None":
        """Creates it with the start model; None if the run has no neutral text. Raises ExpungeError for sharded weights."""
        if not data.neutral:
            return None
        if training.shard != "none":
            raise ExpungeError(
                f"--neutral needs whole weights in every process, and --shard {training.shard} splits them; leave out one"
            )
        return cls.from_rows(model, data.neutral, data.pad_id, device, training.disruption_budget)

    @classmethod
    @torch.no_grad()
    def from_rows(
        cls, model: nn.Module, rows: Sequence[Encoded], pad_id: int, device: torch.device, budget: float | None = None
    ) -> "Disruption":
        """Creates it with the model as it is now, for these rows."""
        batches = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
        was_training = model.training
        model.eval()
        hidden = [labelled_hidden(model, collate(batch, pad_id).to(device)).hidden_ND for batch in batches]
        model.train(was_training)
        return cls(batches, pad_id, device, hidden, FrozenHead.of(model), budget)

    @torch.no_grad()
    def measure(self, model: nn.Module) -> float:
        """Computes the mean KL(start || model) over all tokens, in nats; without dropout."""
        was_training = model.training
        model.eval()
        total, tokens = 0.0, 0
        for rows, hidden_ND in zip(self.batches, self.hidden, strict=True):
            logits_NV = labelled_logits(model, collate(rows, self.pad_id).to(self.device)).logits_NV
            total += float(kl_divergence(self.head(hidden_ND), logits_NV).sum())
            tokens += len(hidden_ND)
        model.train(was_training)
        return total / tokens

    def mark(self, weights: Iterable[nn.Parameter]) -> None:
        """Stores the trained weights at a check."""
        if self.budget is not None:
            self.marked = copies(weights)

    def check(self, model: nn.Module, weights: Sequence[nn.Parameter]) -> str | None:
        """Returns why the run ends, or None. Beyond the budget, `weights` are set to the last point on their way since the last
        check that is within it."""
        if self.budget is None or self.measure(model) <= self.budget:
            self.mark(weights)
            return None
        way = Way.since(weights, self.marked)
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            share = (low + high) / 2
            way.place(share)
            low, high = (share, high) if self.measure(model) <= self.budget else (low, share)
        way.place(low)
        return f"the disruption budget of {self.budget:g} nats per token of neutral text is used up"
