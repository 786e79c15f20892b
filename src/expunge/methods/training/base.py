"""Defines the interface of training methods: the rows that a step needs, frozen values of them, and the terms of the loss.

A method is a frozen value: its fields are the hyperparameters, its docstring gives formula and paper. The
runtime in `training/` draws the rows, computes the frozen values once before the loop, backpropagates and steps; a method never
opens a file, never owns an optimizer and never sees a device.

Shape suffixes in all methods: B rows of a batch, T positions, D width, V vocabulary, N labelled tokens of a batch in
row-major order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

from expunge.data.encode import Encoder, Tokens
from expunge.data.example import Example, Request
from expunge.methods.base import Family, Spec

if TYPE_CHECKING:
    from torch import Tensor, nn


Prompts = Literal["forget", "retain"]
Answers = Literal["own", "refusals", "forget", "retain", "alternates"]
Quantity = Literal["logprob", "hidden", "renamed", "exchanged"]


@dataclass(frozen=True)
class RowSet:
    """Rows that a step needs: prompts of one set, each with one or several answers."""

    prompts: Prompts = "forget"
    """Set that the prompts are from. The run iterates over the `forget` rows; `retain` rows are drawn for each step."""
    answers: Answers = "own"
    """Answers of the prompts: their `own`; `refusals`, drawn for each prompt; answers of other rows of the `forget` or the
    `retain` set, drawn for each prompt among those that do not belong to it (mismatched answers); or `alternates`, which the
    start model generated before the loop."""
    count: int = 1
    """Number of different answers per prompt. The rows b * count to (b + 1) * count - 1 are those of prompt b."""
    frozen: frozenset[Quantity] = frozenset()
    """Values of the start model beside each row, computed once before the loop, as `Tokens.frozen[quantity]`:

    logprob    sum of the answer's log-probabilities [B]
    hidden     final hidden states at labelled positions [N, D]
    renamed    the same of the row under `names` other names [N, K, D]
    exchanged  which tokens of these names stand for which of the own ones [N, K, S, 2]; pairs of equal tokens fill up
    """

    names: int = 0
    """Number of other names under which each row is read, for `renamed` and `exchanged` (K)."""

    def __post_init__(self) -> None:
        if self.count < 1 or (self.answers == "own" and self.count > 1):
            raise ValueError("a row set has at least one answer per prompt, and exactly one where it is the row's own")


FORGET = RowSet()
RETAIN = RowSet("retain")
REFUSALS = RowSet("forget", "refusals")


@dataclass(frozen=True)
class Batch:
    """The padded row sets and frozen values that one evaluation of a loss reads.

    All sets with forget prompts are aligned: row b of each belongs to the same prompt.
    """

    sets: Mapping[str, Tokens]
    """By the names of `TrainingMethod.row_sets`."""
    start_head: Callable[[Tensor], Tensor] | None = None
    """The start model's output head, N x D -> N x V, for losses that compare whole distributions: final hidden states of the
    start model are cached (D numbers per token) instead of its logits (V numbers) or a second model."""
    start_weights: Mapping[str, Tensor] | None = None
    """Start values of the trained weights, by their names in the transformers model, if the method asks for them: with
    `exchanged` they give the start model's activations without a second model."""
    prepared: Mapping[str, Tensor] = field(default_factory=dict)
    """What the method's `prepare` returned."""
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    """What the method carries from step to step: `first_carried` at the first step, then what `carry` returned."""
    part: int = 0
    """Index of the part of the forget set that the rows are from, for methods that keep parts separate."""

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
        """Computes logits of the start model at the labelled positions of `tokens`, N x V; the row set must list `hidden` as
        frozen."""
        import torch

        if self.start_head is None or "hidden" not in tokens.frozen:
            raise ValueError("these rows carry no hidden states of the start model: the row set must name `hidden` in `frozen`")
        with torch.no_grad():
            return self.start_head(tokens.frozen["hidden"])

    def renamed_probabilities(self, tokens: Tokens) -> Tensor:
        """Computes what the start model expects at the labelled positions of `tokens` under other names, N x V, float32: the mean
        over the names, in which the probability of a token of the other name is that of the own name's. The row set must list
        `renamed` and `exchanged` as frozen."""
        import torch

        if self.start_head is None or not {"renamed", "exchanged"} <= tokens.frozen.keys():
            raise ValueError(
                "these rows carry nothing under other names: the row set must name `renamed` and `exchanged` in `frozen`"
            )
        hidden_NKD, exchanged_NKS2 = tokens.frozen["renamed"], tokens.frozen["exchanged"]
        names, mean_NV = hidden_NKD.shape[1], None
        with torch.no_grad():
            for k in range(names):
                p_NV = self.start_head(hidden_NKD[:, k]).float().softmax(-1)
                for other_N1, own_N1 in (pair_N2.split(1, dim=1) for pair_N2 in exchanged_NKS2[:, k].unbind(dim=1)):
                    moved_N1 = p_NV.gather(1, other_N1)
                    p_NV.scatter_(1, other_N1, 0.0).scatter_add_(1, own_N1, moved_N1)
                mean_NV = p_NV if mean_NV is None else mean_NV + p_NV
        assert mean_NV is not None
        return mean_NV / names


class Term(NamedTuple):
    """One summand of a loss."""

    name: str
    """Name in metrics.jsonl, such as `forget` or `retain`; unique among the terms of a loss."""
    value: Tensor
    """Scalar, a mean over the rows of the set `rows`: over micro-batches, the mean weighted by their rows is the same number."""
    weight: float | Tensor = 1.0
    """The loss is the sum of weight * value. A tensor must not require a gradient."""
    rows: str = "forget"
    """Name of the row set that `value` is a mean over; a set with several answers per prompt counts its prompts."""
    record: Mapping[str, Tensor] = {}
    """Further detached scalars for metrics.jsonl, means over the same rows."""


class Loss(NamedTuple):
    """All terms of a loss, evaluated together."""

    total: Tensor
    """Scalar: the weighted sum of the terms."""
    parts: Mapping[str, Tensor]
    """Detached values of the terms before their weights, by name, and what they record."""


class Asking(NamedTuple):
    """How the start model is asked, before the loop, for alternative answers to the forget prompts."""

    prompt: Callable[[Example], str]
    """The prompt for a forget row."""
    draws: int
    """Sampled answers for each row."""
    temperature: float
    max_new_tokens: int
    stops: tuple[str, ...]
    """Texts at which an answer is over."""


AnswerDrawer = Callable[["nn.Module", Encoder, Sequence[str], Asking, int], list[tuple[str, ...]]]
"""(model, encoder, prompts, how, seed) -> the drawn answers to each prompt; `evaluation.alternates` has it."""


class Progress(NamedTuple):
    """How far a run is after a step."""

    step: int
    """Steps done."""
    steps: int
    """Steps of the whole run."""
    epoch: float
    """Passes over the forget set done."""


class TrainingMethod(Spec):
    """Base class of methods that train weights by gradient descent on a loss."""

    family: ClassVar[Family] = "training"
    learning_rate: ClassVar[float] = 1e-5
    """Learning rate for full weights of a model of 7 billion; `auto` follows from it (training/defaults.py)."""
    aims_at_unknown: ClassVar[bool] = False
    """Whether the forget answers should become as improbable as those of rows never seen, so that a run may stop there."""

    parameters: str = ".*"
    """Regular expression; the weights whose full name it matches are trained, all others are frozen."""

    @property
    def row_sets(self) -> Mapping[str, RowSet]:
        """Returns the row sets that `terms` reads, by name."""
        return {"forget": FORGET}

    @property
    def needs_start_weights(self) -> bool:
        """Returns whether a batch includes the start values of the trained weights."""
        return False

    @property
    def uses_retain(self) -> bool:
        """Returns whether any row set has prompts or answers of the retain set."""
        return any("retain" in (rows.prompts, rows.answers) for rows in self.row_sets.values())

    @property
    def uses_refusals(self) -> bool:
        """Returns whether any row set has refusals as answers."""
        return any(rows.answers == "refusals" for rows in self.row_sets.values())

    @property
    def asking(self) -> Asking | None:
        """Returns how the start model is asked for `alternates`; None: they are the `perturbed` answers of each forget row."""
        return None

    @property
    def pad_side(self) -> Literal["right", "left"]:
        """Returns the padding side of batches; it affects only a loss that counts pads."""
        return "right"

    @property
    def rows_are_independent(self) -> bool:
        """Returns whether each term is a mean over rows of values that depend on one row only.

        Then a step may be split, and its rows sorted by length.
        """
        return True

    @property
    def leaves_depth_open(self) -> bool:
        """Returns whether a field is unset whose default depends on the number of the model's blocks."""
        return False

    def for_depth(self, blocks: int) -> Self:
        """Returns the method with the defaults for a model of so many blocks."""
        return self

    def candidates(self, model: nn.Module) -> set[str]:
        """Returns the weights among which `parameters` selects; all, unless a method is defined for weights of certain roles."""
        return {name for name, _ in model.named_parameters()}

    def forget_parts(self, request: Request) -> tuple[tuple[int, ...], ...]:
        """Returns groups of forget rows that must not be mixed in a step, which steps take in turn; empty: all are one group.

        Called before a model is loaded, and so the place to refuse fields that do not fit the data.
        """
        return ()

    def prepare(self, model: nn.Module, probes: Sequence[Tokens]) -> Mapping[str, Tensor]:
        """Measures once, before the loop, what the loss or `finished` needs of the start model besides frozen row values.

        probes  up to 16 fixed rows of each forget part, one batch a part
        """
        return {}

    def first_carried(self) -> Mapping[str, Tensor]:
        """Returns the small tensors carried from step to step, as they are before the first step; checkpoints store them."""
        return {}

    def carry(self, carried: Mapping[str, Tensor], parts: Mapping[str, float], progress: Progress) -> Mapping[str, Tensor]:
        """Returns the carried tensors after a step whose terms had the values `parts` over the whole batch."""
        return carried

    def finished(self, model: nn.Module, probes: Sequence[Tokens], prepared: Mapping[str, Tensor]) -> str | None:
        """Returns the reason to stop now, or None; called every `stop_every` steps, without gradient."""
        return None

    def terms(self, model: nn.Module, batch: Batch) -> Iterator[Term]:
        """Yields the terms of the loss one after the other.

        The runtime backpropagates each term before it asks for the next, so that only one graph is in memory if each term runs
        its own forward pass. Pure: the same model and batch give the same terms; only weights that require gradients receive
        them.
        """
        raise TypeError(f"{type(self).__name__} defines no loss")

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Evaluates all terms at once; all their graphs are in memory until `total.backward()`."""
        import torch

        terms = list(self.terms(model, batch))
        parts: dict[str, Tensor] = {}
        for term in terms:
            parts |= {term.name: term.value.detach(), **term.record}
        return Loss(torch.stack([term.weight * term.value for term in terms]).sum(), parts)
