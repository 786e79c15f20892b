"""PDU: flattens the logits of forget answers, with a constraint on the retain loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.methods.training.base import RETAIN, Batch, Progress, RowSet, Term
from expunge.methods.training.retain import WithRetain

if TYPE_CHECKING:
    from torch import Tensor, nn


class PDU(WithRetain):
    """min over the weights, max over lambda >= 0 of  forget_weight * L_forget + lambda (L_retain - epsilon).

    L_forget is the mean over rows of the row's mean of  (max_v z_v - mean_v z_v)^2  with the logits z that predict an answer
    token: 0 for a uniform distribution, and so bounded below, unlike gradient ascent. lambda starts at `retain_weight`; after
    each step it becomes  max(0, lambda + dual_step (L_retain - epsilon)), so that it grows while the retain loss is above its
    budget epsilon and shrinks below it. metrics.jsonl has it as `dual`; the constant lambda * epsilon is left out of `loss`.

    The mask of the released code is not shifted: it counts the logits after each answer token, but not those before the first.
    This is not reproduced.
    """

    paper: ClassVar[str] = "Entesari et al. 2025, arXiv 2506.05314"
    formula: ClassVar[str] = (
        "L = gamma mean_t (max z - mean z)^2 (forget) + lambda CE(retain), lambda <- max(0, lambda + s (CE(retain) - epsilon))"
    )
    cost: ClassVar[str] = "forward and backward of forget and retain rows; nothing beside the model"
    purpose: ClassVar[str] = "facts: flattens the answers' distribution within a budget of retain loss"
    weakness: ClassVar[str] = "the budget and two step settings to tune"

    name: Literal["pdu"] = "pdu"
    retain_weight: float = Field(100.0, ge=0)
    """Start value of lambda; the paper's tuning gave 100 for TOFU and 50 for MUSE."""
    retain_loss: Literal["cross_entropy", "kl"] = "cross_entropy"
    """The constrained loss: cross_entropy on the retain answers, or kl to the start model."""
    retain_budget: float = Field(0.3, ge=0)
    """Allowed retain loss (epsilon), in nats per token: slightly above the start model's. 0.3 is TOFU's; MUSE's are between
    0.1 and 1.5, by model and corpus."""
    dual_step: float = Field(5.0, ge=0)
    """Step size of lambda; 0 keeps it constant."""
    dual_warmup: float = Field(5.0, ge=0)
    """Epochs over the forget set during which lambda is constant."""

    @property
    def row_sets(self) -> Mapping[str, RowSet]:
        retain = RowSet("retain", frozen=frozenset({"hidden"})) if self.retain_loss == "kl" else RETAIN
        return {**self.forget_sets, "retain": retain}

    def first_carried(self) -> Mapping[str, Tensor]:
        """Returns lambda, a float64 scalar."""
        import torch

        return {"dual": torch.tensor(self.retain_weight, dtype=torch.float64)}

    def carry(self, carried: Mapping[str, Tensor], parts: Mapping[str, float], progress: Progress) -> Mapping[str, Tensor]:
        if progress.epoch <= self.dual_warmup:
            return carried
        return {"dual": (carried["dual"] + self.dual_step * (parts["retain"] - self.retain_budget)).clamp(min=0)}

    def terms(self, model: nn.Module, batch: Batch) -> Iterator[Term]:
        import torch

        yield Term("forget", self.forget_term(model, batch), self.forget_weight)
        dual, retain = float(batch.carried["dual"]), self.retain_term(model, batch)
        yield Term("retain", retain, dual, "retain", {"dual": torch.full_like(retain.detach(), dual)})

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        from expunge.models.logprobs import labelled_logits, sequence_mean

        labelled = labelled_logits(model, batch.forget)
        logits_NV = labelled.logits_NV.float()
        margin_N = logits_NV.amax(dim=-1) - logits_NV.mean(dim=-1)
        return sequence_mean(margin_N.square(), labelled.row_N, labelled.rows).mean()
