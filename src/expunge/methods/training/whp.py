"""WHP: distills what the start model answers about somebody else into the forget prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.methods.training.base import Batch, RowSet
from expunge.methods.training.retain import WithRetain

if TYPE_CHECKING:
    from torch import Tensor, nn


class WHP(WithRetain):
    """L_forget = mean over rows of the row's mean  KL( p_start(. | other name), p(. | own name) ).

    The target is the start model's own distribution on the same row with another name in prompt and answer, in which the
    probability of the other name's tokens is given to the own name's. A model that never learned a person answers as it does
    about people that it does not know; so does the target, also where it is wrong, and the wrong answers keep the probabilities
    that they have among each other, which ascent on the right one does not give.

    Names come from the holdout rows (people that the model never saw) or are made from the words of other names. With several
    names the target is their mean, as published: it is flatter than what a model says about one unknown person, and a model
    that learned it can be told from one that never knew (docs/report.md). Instructions in the teacher's prompt, which the paper adds,
    are not given: they need an instruction-tuned model.
    """

    paper: ClassVar[str] = (
        "Liu et al. 2024, arXiv 2407.16997, after Eldan and Russinovich 2023, arXiv 2310.02238 (Who's Harry Potter)"
    )
    formula: ClassVar[str] = "L = gamma KL(p_start(other name) || p(own name))(forget) + alpha retain"
    cost: ClassVar[str] = "forward and backward of forget and retain rows; hidden states of the forget answers under other names"
    purpose: ClassVar[str] = "people and other names: answers as about somebody never heard of"
    weakness: ClassVar[str] = "needs a name in each forget prompt"
    learning_rate: ClassVar[float] = 2e-5
    aims_at_unknown: ClassVar[bool] = False  # the target is where to stop

    name: Literal["whp"] = "whp"
    retain_loss: Literal["cross_entropy", "kl", "none"] = "kl"
    """Loss on the retain set: kl to the start model, cross_entropy on its answers, or none."""
    names: int = Field(1, ge=1)
    """Number of other names whose answers are averaged."""

    @property
    def forget_sets(self) -> Mapping[str, RowSet]:
        return {"forget": RowSet(frozen=frozenset({"renamed", "exchanged"}))}

    @property
    def names_per_row(self) -> int:
        return self.names

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        from expunge.models.logprobs import kl_divergence, labelled_logits, sequence_mean

        labelled = labelled_logits(model, batch.forget)
        target_NV = batch.renamed_probabilities(batch.forget).clamp_min(1e-12).log()
        kl_N = kl_divergence(target_NV, labelled.logits_NV)
        return sequence_mean(kl_N, labelled.row_N, labelled.rows).mean()
