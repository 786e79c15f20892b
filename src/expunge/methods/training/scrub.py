"""SCRUB: maximizes the distance to the start model on forget and minimizes it on retain, in alternating epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.data.encode import Tokens
from expunge.methods.training.base import Batch, Progress, Quantity, RowSet, Term, TrainingMethod
from expunge.methods.training.retain import cross_entropy

if TYPE_CHECKING:
    from torch import Tensor, nn


class SCRUB(TrainingMethod):
    """In the epochs 0, 2, 4, ... below `max_epochs`  L = -D(forget),  in all others
    L = distill_weight D(retain) + retain_weight CE(retain).

    D = T^2 KL( softmax(z_start / T) || softmax(z / T) ),  mean over rows of the row's mean over answer tokens, with the softmax
    over the vocabulary. An epoch is one pass over the forget set, so `--epochs` is the number of turns: two times forgetting in
    the published five.

    ECO's release takes the softmax over positions instead of the vocabulary, and divides by the batch size twice; that is not
    reproduced.
    """

    paper: ClassVar[str] = "Kurmanji et al. 2023, arXiv 2302.09880; weights of ECO's baseline (Liu et al. 2024, arXiv 2406.07933)"
    formula: ClassVar[str] = "L = -D(forget) and L = a D(retain) + g CE(retain) in turns, D = T^2 KL(start || model) at T"
    cost: ClassVar[str] = "forward and backward of forget or retain rows; hidden states of both and one copy of the head"
    purpose: ClassVar[str] = "a baseline: whole epochs away from the start model, and epochs back towards it on what to keep"
    weakness: ClassVar[str] = "swings; only a few turns"
    learning_rate: ClassVar[float] = 2e-5

    name: Literal["scrub"] = "scrub"
    temperature: float = Field(4.0, gt=0)
    """T: divisor of the logits before they are compared."""
    distill_weight: float = Field(0.001, ge=0)
    """Factor of the distance to the start model on retain rows (alpha)."""
    retain_weight: float = Field(1.0, ge=0)
    """Factor of the cross-entropy on retain rows (gamma)."""
    max_epochs: int = Field(4, ge=0)
    """Number of first epochs in which every other one forgets, beginning with the first; later epochs do not."""

    @property
    def row_sets(self) -> Mapping[str, RowSet]:
        hidden: frozenset[Quantity] = frozenset({"hidden"})
        return {"forget": RowSet(frozen=hidden), "retain": RowSet("retain", frozen=hidden)}

    def first_carried(self) -> Mapping[str, Tensor]:
        """Returns whether the next step forgets: 1 or 0."""
        import torch

        return {"forgets": torch.tensor(int(self.max_epochs > 0))}

    def carry(self, carried: Mapping[str, Tensor], parts: Mapping[str, float], progress: Progress) -> Mapping[str, Tensor]:
        import torch

        epoch = int(progress.epoch + 1e-9)  # a step's share of an epoch need not be a binary fraction
        return {"forgets": torch.tensor(int(epoch < self.max_epochs and epoch % 2 == 0))}

    def terms(self, model: nn.Module, batch: Batch) -> Iterator[Term]:
        """Yields all three terms, with weight 0 for those that do not count in this epoch, so that metrics.jsonl has every
        value."""
        forgets = int(batch.carried["forgets"])
        yield Term("forget", self._distance(model, batch, batch.forget), -float(forgets))
        yield Term("distance", self._distance(model, batch, batch.retain), (1 - forgets) * self.distill_weight, "retain")
        yield Term("retain", cross_entropy(model, batch.retain), (1 - forgets) * self.retain_weight, "retain")

    def _distance(self, model: nn.Module, batch: Batch, tokens: Tokens) -> Tensor:
        """Computes D, a scalar, in nats per token times T^2."""
        from expunge.models.logprobs import kl_divergence, labelled_logits, sequence_mean

        labelled, t = labelled_logits(model, tokens), self.temperature
        distance_N = t**2 * kl_divergence(batch.start_logits(tokens) / t, labelled.logits_NV / t)
        return sequence_mean(distance_N, labelled.row_N, labelled.rows).mean()
