"""The contract of training methods: which rows a step needs, which frozen values of them, and the terms of the loss.

A method is a frozen value. Its fields are the experiment, its docstring is the paper, and its pure functions are the idea. The
runtime in `training/` draws the rows, computes the frozen values once before the loop, backpropagates and steps; a method never
opens a file, never owns an optimizer and never sees a device.

Shape suffixes in all methods: B rows of a batch, T positions, D width, V vocabulary, N labelled tokens of a batch in
row-major order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from expunge.data.encode import Tokens
from expunge.data.example import Request
from expunge.methods.base import Family, Spec

Prompts = Literal["forget", "retain"]
Answers = Literal["own", "refusals", "forget", "retain", "alternates"]
Quantity = Literal["logprob", "hidden"]


@dataclass(frozen=True)
class RowSet:
    """Rows that a step needs: the prompts of one set, each with one or several answers."""

    prompts: Prompts = "forget"
    """Whose prompts. `forget` are the rows that the run walks over, `retain` rows are drawn beside them."""
    answers: Answers = "own"
    """With which answers: their `own`; `refusals`, drawn for each prompt; answers of other rows of the `forget` or the `retain`
    set, drawn for each prompt among those that are not an answer to it (mismatched answers); or `alternates`, which the start
    model itself wrote before the loop."""
    count: int = 1
    """Answers per prompt, all different. The set has `count` rows per prompt, side by side: rows b * count to (b + 1) * count - 1
    are those of prompt b."""
    frozen: frozenset[Quantity] = frozenset()
    """Values of the start model beside each row, computed once before the loop, as `Tokens.frozen[quantity]`: `logprob`, the sum
    of the answer's log-probabilities [B]; `hidden`, the final hidden states at labelled positions [N, D]."""

    def __post_init__(self) -> None:
        if self.count < 1 or (self.answers == "own" and self.count > 1):
            raise ValueError("a row set has at least one answer per prompt, and exactly one where it is the row's own")


FORGET = RowSet()
RETAIN = RowSet("retain")
REFUSALS = RowSet("forget", "refusals")


@dataclass(frozen=True)
class Batch:
    """What one evaluation of a loss sees: the row sets that the method named, padded, and what is frozen.

    All sets with forget prompts are aligned: row b of each belongs to the same prompt.
    """

    sets: Mapping[str, Tokens]
    """By the names of `TrainingMethod.row_sets`."""
    start_head: Callable[[Tensor], Tensor] | None = None
    """The start model's output head, N x D -> N x V, for losses that compare whole distributions with the start model: its final
    hidden states are kept per token (D numbers) instead of its logits (V numbers) or a second model."""
    start_weights: Mapping[str, Tensor] | None = None
    """Start values of the weights that move, by their names in the transformers model, where the method asks for them: with
    `exchanged` they give the start model's activations without a second model."""
    prepared: Mapping[str, Tensor] = field(default_factory=dict)
    """What the method's `prepare` returned."""
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    """What the method carries from step to step: `first_carried` before the first one, then what `carry` returned."""
    part: int = 0
    """Which part of the forget set the rows are of, for methods that keep parts apart."""

    def __getitem__(self, name: str) -> Tokens:
        if name not in self.sets:
            raise ValueError(f"this batch has no row set '{name}': the method must name it in `row_sets`")
        return self.sets[name]

    def __contains__(self, name: str) -> bool:
        return name in self.sets

    @property
    def forget(self) -> Tokens:
        return self["forget"]

    @property
    def retain(self) -> Tokens:
        return self["retain"]

    def start_logits(self, tokens: Tokens) -> Tensor:
        """Logits of the start model at the labelled positions of `tokens`, N x V; the row set must name `hidden` as frozen."""
        if self.start_head is None or "hidden" not in tokens.frozen:
            raise ValueError("these rows carry no hidden states of the start model: the row set must name `hidden` in `frozen`")
        with torch.no_grad():
            return self.start_head(tokens.frozen["hidden"])


class Term(NamedTuple):
    """One summand of a loss."""

    name: str
    """`forget`, `retain`, ...: what it is called in metrics.jsonl, unique among the terms of a loss."""
    value: Tensor
    """Scalar, a mean over the rows of the set `rows`: over micro-batches, the mean weighted by their rows is the same number."""
    weight: float | Tensor = 1.0
    """The loss is the sum of weight * value. A tensor must not require a gradient."""
    rows: str = "forget"
    """Name of the row set that `value` is a mean over; a set with several answers per prompt counts its prompts."""
    record: Mapping[str, Tensor] = {}
    """More detached scalars for metrics.jsonl, means over the same rows."""


class Loss(NamedTuple):
    """All terms of a loss, evaluated together."""

    total: Tensor
    """Scalar: the weighted sum of the terms."""
    parts: Mapping[str, Tensor]
    """Detached values of the terms before their weights, by name, and what they record."""


class Progress(NamedTuple):
    """How far a run is after a step."""

    step: int
    """Steps done."""
    steps: int
    """Steps of the whole run."""
    epoch: float
    """Passes over the forget set done."""


class TrainingMethod(Spec):
    """A method that moves weights by gradient descent on a loss."""

    family: ClassVar[Family] = "training"
    learning_rate: ClassVar[float] = 1e-5
    """Taken when the run says no learning rate (for full weights; LoRA takes ten times as much)."""

    parameters: str = ".*"
    """Regular expression; the weights whose full name it matches are trained, all others are frozen."""

    @property
    def row_sets(self) -> Mapping[str, RowSet]:
        """The row sets that `terms` finds in a batch, by name."""
        return {"forget": FORGET}

    @property
    def needs_start_weights(self) -> bool:
        """Whether a batch carries the start values of the weights that move."""
        return False

    @property
    def uses_retain(self) -> bool:
        """Whether any row set has prompts or answers of the retain set."""
        return any("retain" in (rows.prompts, rows.answers) for rows in self.row_sets.values())

    @property
    def uses_refusals(self) -> bool:
        """Whether any row set has refusals for answers."""
        return any(rows.answers == "refusals" for rows in self.row_sets.values())

    @property
    def pad_side(self) -> Literal["right", "left"]:
        """Where batches are padded; it changes no loss but one that counts pads."""
        return "right"

    @property
    def rows_are_independent(self) -> bool:
        """Whether terms are means over rows of values that depend on no other row, so that a step may be cut and sorted."""
        return True

    def candidates(self, model: nn.Module) -> set[str]:
        """The weights among which `parameters` chooses; all, unless a method moves weights of certain roles."""
        return {name for name, _ in model.named_parameters()}

    def forget_parts(self, request: Request) -> tuple[tuple[int, ...], ...]:
        """Forget rows that are not to be mixed in a step, which the steps take in turn; none: all are one set.

        Called before a model is loaded, and so the place to refuse fields that do not fit the data.
        """
        return ()

    def prepare(self, model: nn.Module, probes: Sequence[Tokens]) -> Mapping[str, Tensor]:
        """Measures once, before the loop, what the loss or `finished` takes from the start model beyond what row sets freeze.

        probes  up to 16 fixed rows of each forget part, one batch a part
        """
        return {}

    def first_carried(self) -> Mapping[str, Tensor]:
        """Small tensors that the method carries from step to step, as they are before the first; checkpoints hold them."""
        return {}

    def carry(self, carried: Mapping[str, Tensor], parts: Mapping[str, float], progress: Progress) -> Mapping[str, Tensor]:
        """What is carried on after a step whose terms had the values `parts` over the whole batch."""
        return carried

    def finished(self, model: nn.Module, probes: Sequence[Tokens], prepared: Mapping[str, Tensor]) -> str | None:
        """Says why the run is to end now, or nothing; asked every `stop_every` steps, without gradient."""
        return None

    def terms(self, model: nn.Module, batch: Batch) -> Iterator[Term]:
        """Yields the terms of the loss one after the other.

        The runtime backpropagates each before it asks for the next, so a term that runs its forward pass when it is asked for
        has the only graph in memory. Pure: the same model and batch give the same terms; gradients reach only the weights that
        require them.
        """
        raise TypeError(f"{type(self).__name__} defines no loss")

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Evaluates all terms at once; the graphs of all are alive until `total.backward()`."""
        terms = list(self.terms(model, batch))
        parts: dict[str, Tensor] = {}
        for term in terms:
            parts |= {term.name: term.value.detach(), **term.record}
        return Loss(torch.stack([term.weight * term.value for term in terms]).sum(), parts)
