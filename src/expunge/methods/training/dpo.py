"""DPO: trains the model to prefer a refusal over the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.data.encode import Tokens
from expunge.methods.training.base import Batch, Quantity, RowSet
from expunge.methods.training.retain import WithRetain

if TYPE_CHECKING:
    from torch import Tensor, nn


class DPO(WithRetain):
    """L_forget = mean over rows of  -(2/beta) log sigmoid( beta [ (S - S_start)(refusal) - (S - S_start)(answer) ] ).

    S is the sum of the log-probabilities of the answer's tokens. The factor 2/beta is usual in unlearning (it makes the scale
    that of NPO); classic DPO has 1 in its place, which `forget_weight = beta / 2` gives.
    """

    paper: ClassVar[str] = "Rafailov et al. 2023, arXiv 2305.18290; for unlearning Maini et al. 2024 and Zhang et al. 2024"
    formula: ClassVar[str] = (
        "L = -(2 gamma/beta) log sigmoid(beta [log(p/p_start)(refusal) - log(p/p_start)(answer)]) + alpha CE(retain)"
    )
    cost: ClassVar[str] = "forward and backward of forget, refusal and retain rows; one number per forget row and refusal"
    purpose: ClassVar[str] = "prefers a refusal over the answer"
    weakness: ClassVar[str] = "the answer comes back once its beginning is given"

    name: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    """Inverse temperature of the preference."""

    @property
    def forget_sets(self) -> Mapping[str, RowSet]:
        logprob: frozenset[Quantity] = frozenset({"logprob"})
        return {"forget": RowSet(frozen=logprob), "refusals": RowSet("forget", "refusals", frozen=logprob)}

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        from torch.nn.functional import logsigmoid

        margin_B = log_ratio(model, batch["refusals"]) - log_ratio(model, batch.forget)
        return -2 / self.beta * logsigmoid(self.beta * margin_B).mean()


def log_ratio(model: nn.Module, tokens: Tokens) -> Tensor:
    """Computes log p(answer) - log p_start(answer), [B], in nats."""
    from expunge.models.logprobs import labelled_logits, sequence_sum, token_logprobs

    labelled = labelled_logits(model, tokens)
    return sequence_sum(token_logprobs(labelled), labelled.row_N, labelled.rows) - tokens.frozen["logprob"]
