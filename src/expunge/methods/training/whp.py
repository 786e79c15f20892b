"""WHP: distills what the start model answers about somebody else into the forget prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.data.encode import Tokens
from expunge.data.places import IGNORED
from expunge.methods.training.base import Batch, RowSet
from expunge.methods.training.retain import RetainLoss, WithRetain

if TYPE_CHECKING:
    from torch import Tensor, nn


LEAST = 1e-9
"""Smallest probability of a target, for its logarithm."""


class WHP(WithRetain):
    """L_forget = mean over rows of the row's mean  KL(q, p) + tail_weight (log q(y) - log p(y))^2,  y the answer's tokens.

    q = p_start(. | other name), with beta > 0 its probability of y multiplied by exp(-beta) where the prompt does not contain y.

    The target is the start model's own distribution on the same row with another name in prompt and answer, in which the
    probability of the other name's tokens is given to the own name's. A model that never learned a person answers as it does
    about people that it does not know; so does the target, also where it is wrong, and the wrong answers keep the probabilities
    that they have among each other, which ascent on the right one does not give.

    Names come from the holdout rows (people that the model never saw) or are made from the words of other names. With several
    names the target is their mean, as published: it is flatter than what a model says about one unknown person, and a model
    that learned it can be told from one that never knew (docs/gold.md). The paper's instructions in the teacher's prompt are
    not given: they need an instruction-tuned model.
    """

    paper: ClassVar[str] = (
        "Liu et al. 2024, arXiv 2407.16997, after Eldan and Russinovich 2023, arXiv 2310.02238 (Who's Harry Potter)"
    )
    formula: ClassVar[str] = (
        "L = gamma [KL(q || p) + tail (log q(y)/p(y))^2](forget) + alpha retain,  q = p_start(. | other name)"
    )
    cost: ClassVar[str] = "forward and backward of forget and retain rows; hidden states of the forget answers under other names"
    purpose: ClassVar[str] = "people and other names: answers as about somebody never heard of"
    weakness: ClassVar[str] = "needs a name in each forget prompt, and a few hundred steps"
    learning_rate: ClassVar[float] = 2e-5

    name: Literal["whp"] = "whp"
    retain_loss: RetainLoss = "kl"
    """Loss on the retain set: kl to the start model, cross_entropy on its answers, or none."""
    names: int = Field(1, ge=1)
    """Number of other names whose answers are averaged."""
    beta: float = Field(0.0, ge=0)
    """How much the answer's own words are lowered in the target, in nats. The start model has learned these answers, and so
    gives them more often about strangers too than a model that never saw them. Not published: 0 leaves the target as it is."""
    tail_weight: float = Field(0.0, ge=0)
    """Weight of the squared difference of the log-probabilities of the answer's tokens. The divergence hardly depends on how
    improbable an improbable token is, on which min-k statistics and truth ratios do. Not published: 0 leaves it out."""

    @property
    def forget_sets(self) -> Mapping[str, RowSet]:
        return {"forget": RowSet(frozen=frozenset({"renamed", "exchanged"}), names=self.names)}

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        from expunge.models.logprobs import kl_divergence, labelled_logits, sequence_mean, token_logprobs

        labelled = labelled_logits(model, batch.forget)
        labels_N1 = labelled.labels_N[:, None]
        target_NV = batch.renamed_probabilities(batch.forget)
        if self.beta:
            lowered_N1 = target_NV.gather(1, labels_N1) * _lowered(batch.forget, labelled.row_N, labels_N1, self.beta)
            target_NV.scatter_(1, labels_N1, lowered_N1)
            target_NV /= target_NV.sum(dim=1, keepdim=True)
        target_NV = target_NV.clamp_min(LEAST).log()
        distance_N = kl_divergence(target_NV, labelled.logits_NV)
        if self.tail_weight:
            apart_N = target_NV.gather(1, labels_N1)[:, 0] - token_logprobs(labelled)
            distance_N = distance_N + self.tail_weight * apart_N.square()
        return sequence_mean(distance_N, labelled.row_N, labelled.rows).mean()


def _lowered(tokens: Tokens, row_N: Tensor, labels_N1: Tensor, beta: float) -> Tensor:
    """Returns exp(-beta) for labels that their row's prompt does not contain and 1 for the others, [N, 1]."""
    import torch

    answer_BT = (tokens.labels_BT != IGNORED).cumsum(dim=1) > 0
    prompt_BT = (tokens.attention_mask_BT == 1) & ~answer_BT
    copied_N1 = ((tokens.input_ids_BT[row_N] == labels_N1) & prompt_BT[row_N]).any(dim=1, keepdim=True)
    return torch.where(copied_N1, 1.0, math.exp(-beta))
