"""NPO (negative preference optimization): the rejected half of DPO, without a preferred answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.methods.training.base import Batch, RowSet
from expunge.methods.training.retain import WithRetain

if TYPE_CHECKING:
    from torch import Tensor, nn


class NPO(WithRetain):
    """L_forget = mean over rows of  -(2/beta) log sigmoid( -beta (S - S_start) ),   S = sum_t log p(y_t | y_<t).

    Bounded below by 0, and its gradient is gradient ascent's times  2 r^beta / (1 + r^beta),  r = exp(S - S_start):
    rows that are already forgotten have almost no gradient. At the start S = S_start and L_forget = (2/beta) ln 2.
    S is a sum over the answer's tokens (nats), the end token included; S_start is computed once, before the loop.
    """

    paper: ClassVar[str] = "Zhang et al. 2024, arXiv 2404.05868, eq. 3"
    formula: ClassVar[str] = "L = -(2 gamma/beta) log sigmoid(-beta log(p/p_start)(forget)) + alpha CE(retain)"
    cost: ClassVar[str] = "forward and backward of forget and retain rows; one number per forget row"
    purpose: ClassVar[str] = "facts: a bounded loss that slows down by itself"
    weakness: ClassVar[str] = "leaves traces that statistics still find"

    name: Literal["npo"] = "npo"
    beta: float = Field(0.1, gt=0)
    """Inverse temperature; towards 0 the method becomes gradient ascent."""

    @property
    def forget_sets(self) -> Mapping[str, RowSet]:
        return {"forget": RowSet(frozen=frozenset({"logprob"}))}

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        from torch.nn.functional import logsigmoid

        from expunge.models.logprobs import labelled_logits, sequence_sum, token_logprobs

        labelled = labelled_logits(model, batch.forget)
        logp_B = sequence_sum(token_logprobs(labelled), labelled.row_N, labelled.rows)
        ratio_B = logp_B - batch.forget.frozen["logprob"]
        return -2 / self.beta * logsigmoid(-self.beta * ratio_B).mean()
