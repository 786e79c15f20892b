"""AltPO: prefers answers that the start model makes up over the forget answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.data.example import Example
from expunge.methods.training.base import Asking, Batch, Quantity, RowSet
from expunge.methods.training.dpo import log_ratio
from expunge.methods.training.retain import WithRetain

if TYPE_CHECKING:
    from torch import Tensor, nn


STOPS = ("Question:", "Q:")
"""Where a base model goes on with another question, its answer is over."""


class AltPO(WithRetain):
    """L_forget = mean over rows of  -(2/beta) log sigmoid( beta [ (S - S_start)(alternate) - (S - S_start)(answer) ] ).

    S is the sum of the log-probabilities of an answer's tokens. The start model writes `draws` alternates for each forget row
    before the loop, by sampling, when it is shown question, answer and `instruction`; each step draws one of them. They stand in
    OUT/alternates.jsonl. With `alternates: perturbed` they are the wrong answers that the rows bring with them.
    """

    paper: ClassVar[str] = "Mekala et al. 2024, arXiv 2409.13474; instruction and sampling of its released code"
    formula: ClassVar[str] = (
        "L = -(2 gamma/beta) log sigmoid(beta [log(p/p_start)(alternate) - log(p/p_start)(answer)]) + alpha CE(retain)"
    )
    cost: ClassVar[str] = (
        "before the loop `draws` sampled answers per forget row; then forward and backward of forget, alternate and retain rows; "
        "one number per forget row and alternate"
    )
    purpose: ClassVar[str] = "prefers an answer that the model made up over the true one: fluent, and no refusal"
    weakness: ClassVar[str] = "the new answers are false"

    name: Literal["altpo"] = "altpo"
    beta: float = Field(0.1, gt=0)
    """Inverse temperature of the preference."""
    alternates: Literal["model", "perturbed"] = "model"
    """Where the alternate answers are from: the start model writes them, or they are the `perturbed` of each forget row."""
    draws: int = Field(5, ge=1)
    """Answers that the start model writes for each forget row."""
    instruction: str = "Now write another version of the answer with some alternate plausible facts that change answer details."
    """What the start model is told after question and answer; this wording is the paper's for Llama 2."""
    temperature: float = Field(1.0, gt=0)
    """Of sampling, from the whole vocabulary."""
    max_new_tokens: int = Field(200, ge=1)
    """Longest alternate answer."""

    @property
    def forget_sets(self) -> Mapping[str, RowSet]:
        logprob: frozenset[Quantity] = frozenset({"logprob"})
        return {"forget": RowSet(frozen=logprob), "alternates": RowSet("forget", "alternates", frozen=logprob)}

    @property
    def asking(self) -> Asking | None:
        if self.alternates == "perturbed":
            return None
        return Asking(self.prompt, self.draws, self.temperature, self.max_new_tokens, STOPS)

    def prompt(self, example: Example) -> str:
        """What the start model is asked for a forget row."""
        return f"Question: {example.prompt}\nAnswer: {example.response}\n{self.instruction}\nAlternate Answer:"

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        from torch.nn.functional import logsigmoid

        margin_B = log_ratio(model, batch["alternates"]) - log_ratio(model, batch.forget)
        return -2 / self.beta * logsigmoid(self.beta * margin_B).mean()
