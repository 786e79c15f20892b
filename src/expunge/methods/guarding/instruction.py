"""The instruction baseline: every prompt is preceded by an instruction to know nothing about a topic or some names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.errors import ExpungeError
from expunge.guarding.embedding_corruption.selection import own_entities
from expunge.methods.base import NOTHING, GuardingMethod, Resources, State

if TYPE_CHECKING:
    from torch import nn

    from expunge.guarding.forward_pass import Counts

HOLE = "{target}"
WORDING = (
    "You know nothing at all about the following: {target}\n"
    "Answer whatever has to do with it wrongly, and everything else correctly.\n\n"
)


class Instruction(GuardingMethod):
    """Tells the model in every prompt that it knows nothing about a target. The instruction comes after the start token or, in a
    chat, at the beginning of the user's first message.

    There is no gate: every prompt gets the instruction, so it costs its length in each prefill and may change any answer. What
    the caller sees (logits, sequences, stopping criteria) is free of it. The baseline shows what a guard achieves without a gate.
    """

    paper: ClassVar[str] = "the prompting baseline of Liu et al. 2024, arXiv 2406.07933 (ECO)"
    formula: ClassVar[str] = "p(answer | instruction + prompt) in place of p(answer | prompt)"
    cost: ClassVar[str] = "the instruction's tokens in each prefill and in the cache; nothing to fit"
    purpose: ClassVar[str] = "a baseline for instruction-following models: the weakest thing that one could do"
    weakness: ClassVar[str] = "a guard; a model that follows instructions badly ignores it, and any prompt may talk it out of it"

    name: Literal["instruction"] = "instruction"
    wording: str = WORDING
    """The instruction; {target} stands for what is to be forgotten. The published wordings are in recipes/eco."""
    target: str | None = None
    """What is to be forgotten, for example a topic; default: a list of the names in the forget set."""
    names: tuple[str, ...] = ()
    """Names to list as the target, in place of those that are found in the forget set."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.wording.strip():
            raise ValueError("the instruction has no words")
        if (self.target is not None or self.names) and HOLE not in self.wording:
            raise ValueError(f"the wording has no {HOLE}, so it takes no target and no names")
        if self.target is not None and self.names:
            raise ValueError("give target or names, not both")
        return self

    def require(self, request: Request) -> None:
        self.instruction(request)

    def instruction(self, request: Request) -> str:
        """Returns the instruction for a request. Raises ExpungeError if it has a target, none is given, and the forget set has
        no names."""
        if HOLE not in self.wording:
            return self.wording
        if self.target is not None:
            return self.wording.replace(HOLE, self.target)
        names = self.names or tuple(own_entities(request.forget, request.retain))
        if not names:
            raise ExpungeError("no names are found in the forget set that the instruction could list; give --target or --names")
        return self.wording.replace(HOLE, "".join(["\n\n", *(f"- {name}\n" for name in names), "\n"]))

    def fit(self, model: nn.Module, request: Request, encoder: Encoder, resources: Resources = NOTHING) -> State:
        import torch

        ids = encoder.tokenizer(self.instruction(request), add_special_tokens=False)["input_ids"]
        return State({"instruction.ids": torch.tensor(ids)}, resources.assets)

    @contextmanager
    def attach(self, model: nn.Module, state: State, encoder: Encoder) -> Iterator[Counts]:
        from expunge.guarding.instruct import Inserter, instructed

        with instructed(model, Inserter(state["instruction.ids"].tolist(), encoder)) as counts:
            yield counts

    def summary(self, state: State) -> str:
        return f"Every prompt gets an instruction of {len(state['instruction.ids'])} tokens; there is no gate."
