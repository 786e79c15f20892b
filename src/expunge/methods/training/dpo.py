"""DPO: the refusal is preferred to the answer."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from expunge.data.encode import Tokens
from expunge.methods.base import Batch, Loss, Need
from expunge.methods.retain import WithRetain
from expunge.models.logprobs import labelled_logits, sequence_sum, token_logprobs


class DPO(WithRetain):
    """L_forget = mean over rows of  -(2/beta) log sigmoid( beta [ (S - S_start)(refusal) - (S - S_start)(answer) ] ).

    S is the sum of the log-probabilities of the answer's tokens. The factor 2/beta is this field's (it makes the scale
    that of NPO); classic DPO has 1 in its place, which `forget_weight = beta / 2` gives.
    """

    paper: ClassVar[str] = "Rafailov et al. 2023, arXiv 2305.18290; for unlearning Maini et al. 2024 and Zhang et al. 2024"
    formula: ClassVar[str] = (
        "L = -(2 gamma/beta) log sigmoid(beta [log(p/p_start)(refusal) - log(p/p_start)(answer)]) + alpha CE(retain)"
    )
    cost: ClassVar[str] = "forward and backward of forget, refusal and retain rows; one number per forget row and refusal"

    name: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    """Inverse temperature of the preference."""

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs | {"forget_logprob", "alternative_logprob"}

    @property
    def uses_refusals(self) -> bool:
        return True

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        assert batch.alternative is not None
        margin_B = _ratio(model, batch.alternative) - _ratio(model, batch.forget)
        return self.combine(-2 / self.beta * logsigmoid(self.beta * margin_B).mean(), model, batch)


def _ratio(model: nn.Module, tokens: Tokens) -> Tensor:
    """log p(answer) - log p_start(answer), B, in nats."""
    labelled = labelled_logits(model, tokens)
    return sequence_sum(token_logprobs(labelled), labelled.row_N, labelled.rows) - tokens.frozen["logprob"]
