"""Computes the retain term of a loss, and combines it with the forget term.

cross_entropy   mean over rows of the row's mean -log p(label) of the retain answers
kl              mean over rows of the row's mean KL(start model || model) at labelled positions
none            no retain term

Both are means of row means, so that padding and batch size do not change them. (The KL of open-unlearning also covers prompt and
padding positions, and therefore depends on the padding. That is not reproduced.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.data.encode import Tokens
from expunge.methods.training.base import FORGET, RETAIN, Batch, RowSet, Term, TrainingMethod

if TYPE_CHECKING:
    from torch import Tensor, nn


RetainLoss = Literal["cross_entropy", "kl", "none"]


class WithRetain(TrainingMethod):
    """Base class of methods of the form forget_weight * forget term + retain_weight * retain term."""

    aims_at_unknown: ClassVar[bool] = True

    forget_weight: float = Field(1.0, ge=0)
    """Factor of the forget term (gamma)."""
    retain_weight: float = Field(1.0, ge=0)
    """Factor of the retain term (alpha)."""
    retain_loss: RetainLoss = "cross_entropy"
    """Loss on the retain set: cross_entropy on its answers, kl to the start model, or none."""

    @property
    def forget_sets(self) -> Mapping[str, RowSet]:
        """Returns the row sets that the forget term reads."""
        return {"forget": FORGET}

    @property
    def row_sets(self) -> Mapping[str, RowSet]:
        if self.retain_loss == "none" or self.retain_weight == 0:
            return self.forget_sets
        retain = RowSet("retain", frozen=frozenset({"hidden"})) if self.retain_loss == "kl" else RETAIN
        return {**self.forget_sets, "retain": retain}

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes the forget term before its weight: a scalar, a mean over rows."""
        raise TypeError(f"{type(self).__name__} defines no forget term")

    def terms(self, model: nn.Module, batch: Batch) -> Iterator[Term]:
        yield Term("forget", self.forget_term(model, batch), self.forget_weight, rows=next(iter(self.forget_sets)))
        if "retain" in self.row_sets:
            yield Term("retain", self.retain_term(model, batch), self.retain_weight, rows="retain")

    def retain_term(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes the retain term before its weight: a scalar, a mean over rows."""
        if self.retain_loss == "kl":
            return kl_to_start(model, batch, batch.retain)
        return cross_entropy(model, batch.retain)


def cross_entropy(model: nn.Module, tokens: Tokens) -> Tensor:
    """Computes the mean over rows of -(1/n_b) sum_t log p(y_bt | y_b<t), in nats per token."""
    from expunge.models.logprobs import labelled_logits, sequence_mean, token_logprobs

    labelled = labelled_logits(model, tokens)
    return -sequence_mean(token_logprobs(labelled), labelled.row_N, labelled.rows).mean()


def kl_to_start(model: nn.Module, batch: Batch, tokens: Tokens) -> Tensor:
    """Computes the mean over rows of the row's mean KL(p_start || p), in nats per token.

    The start model is represented by its final hidden states (`frozen["hidden"]`, N x D) and one frozen copy of its head:
    D numbers per token are cached instead of V, and no second model is needed.
    """
    from expunge.models.logprobs import kl_divergence, labelled_logits, sequence_mean

    labelled = labelled_logits(model, tokens)
    return sequence_mean(kl_divergence(batch.start_logits(tokens), labelled.logits_NV), labelled.row_N, labelled.rows).mean()
