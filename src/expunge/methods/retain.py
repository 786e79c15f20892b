"""Retain terms: what holds the model in place while the forget term pulls.

cross_entropy   mean over rows of the row's mean -log p(label): keep answering the retain questions
kl              mean over rows of the row's mean KL(reference || model) at labelled positions: keep the whole distribution
none            nothing holds

Both are means of row means, so padding and batch size do not change them. (The peer's KL covers prompt and padding
positions as well, and so depends on the padding: open_unlearning bug B3. There is no switch for that.)
"""

from typing import Literal

from torch import Tensor, nn

from expunge.data.encode import Tokens
from expunge.methods.base import Batch, Loss, Need, TrainingMethod
from expunge.models.logprobs import kl_divergence, labelled_logits, sequence_mean, token_logprobs

RetainLoss = Literal["cross_entropy", "kl", "none"]


class WithRetain(TrainingMethod):
    """A training method of the form  forget_weight * forget term + retain_weight * retain term."""

    forget_weight: float = 1.0
    """Factor of the forget term (gamma)."""
    retain_weight: float = 1.0
    """Factor of the retain term (alpha)."""
    retain_loss: RetainLoss = "cross_entropy"
    """What holds the retain set: cross_entropy on its answers, kl to the start model, or none."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"retain_hidden"}) if self.retain_loss == "kl" else frozenset()

    @property
    def uses_retain(self) -> bool:
        return self.retain_loss != "none"

    def combine(self, forget: Tensor, model: nn.Module, batch: Batch, forget_part: str = "forget") -> Loss:
        """forget_weight * forget + retain_weight * retain term, with both parts for the record."""
        total = self.forget_weight * forget
        parts = {forget_part: forget.detach()}
        if self.retain_loss != "none" and batch.retain is not None:
            retain = (
                cross_entropy(model, batch.retain)
                if self.retain_loss == "cross_entropy"
                else kl_to_start(model, batch, batch.retain)
            )
            total = total + self.retain_weight * retain
            parts["retain"] = retain.detach()
        return Loss(total, parts)


def cross_entropy(model: nn.Module, tokens: Tokens) -> Tensor:
    """Mean over rows of  -(1/n_b) sum_t log p(y_bt | y_b<t), in nats per token."""
    labelled = labelled_logits(model, tokens)
    return -sequence_mean(token_logprobs(labelled), labelled.row_N, labelled.rows).mean()


def kl_to_start(model: nn.Module, batch: Batch, tokens: Tokens) -> Tensor:
    """Mean over rows of the row's mean KL(p_start || p), in nats per token.

    The start model is there as its final hidden states (`frozen["hidden"]`, N x D) and one frozen copy of the head:
    D numbers a token are kept instead of V, and no second model.
    """
    labelled = labelled_logits(model, tokens)
    return sequence_mean(kl_divergence(batch.start_logits(tokens), labelled.logits_NV), labelled.row_N, labelled.rows).mean()
