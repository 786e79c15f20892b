"""Spec and the three contracts: what a method is, whatever family it belongs to.

A method is a frozen value. Its fields are the experiment, its docstring is the paper, and its one or two pure functions
are the idea. `train.py`, `merging/` and the loaders of artifacts call them; a method never opens a file, never owns an
optimizer and never sees a device.

Shape suffixes in all methods: B rows of a batch, T positions, D width, V vocabulary, N labelled tokens of a batch in
row-major order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from expunge.data.encode import Encoder, Tokens
from expunge.data.example import Request

Family = Literal["training", "editing", "guarding", "composed"]

Need = Literal["forget_logprob", "forget_hidden", "alternative_logprob", "retain_hidden", "start_weights"]
"""A frozen quantity of the start model that a loss wants beside a batch: the sum of answer log-probabilities per row
(`Tokens.frozen["logprob"]`, shape B), the final hidden state at labelled positions (`Tokens.frozen["hidden"]`, N x D), or a
copy of the weights that move (`Batch.start_weights`)."""


class Spec(BaseModel):
    """The fields of a method; each attribute docstring is also the `--help` text of its flag."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    family: ClassVar[Family]
    paper: ClassVar[str]
    """Where the method comes from: authors, year, arXiv number."""
    formula: ClassVar[str]
    """What it does, in one line of plain text."""
    cost: ClassVar[str]
    """Forward and backward passes of one step, and what is kept in memory beside one model."""

    @classmethod
    def method_name(cls) -> str:
        """The word on the command line and in YAML."""
        name: str = cls.model_fields["name"].default
        return name


class Batch(NamedTuple):
    """What one loss call sees.

    `forget` are the rows that the run walks over (for `finetune` the rows to learn). Rows of `forget` and `alternative`
    belong together; `retain` rows are drawn beside them.
    """

    forget: Tokens
    retain: Tokens | None = None
    alternative: Tokens | None = None
    """The forget prompts with a refusal in the place of the answer."""
    start_head: Callable[[Tensor], Tensor] | None = None
    """The start model's head, N x D -> N x V, for the losses that compare whole distributions with the start model:
    its final hidden states are kept per token (D numbers) instead of its logits (V numbers) or a second model."""
    start_weights: Mapping[str, Tensor] | None = None
    """The start values of the weights that move, by their names in the transformers model: with `exchanged` they give the start
    model's activations without a second model."""
    prepared: Mapping[str, Tensor] = MappingProxyType({})
    """What the method's `prepare` returned."""
    part: int = 0
    """Which part of the forget set the rows are of, for methods that keep parts apart."""

    def start_logits(self, tokens: Tokens) -> Tensor:
        """Logits of the start model at the labelled positions of `tokens`, N x V; needs `..._hidden` in `needs`."""
        if self.start_head is None:
            raise ValueError("this batch carries no reference head: the method must name a hidden state in `needs`")
        with torch.no_grad():
            return self.start_head(tokens.frozen["hidden"])


class Loss(NamedTuple):
    total: Tensor
    """Scalar, a mean over rows: splitting a batch into equal parts and averaging gives the same number."""
    parts: Mapping[str, Tensor]
    """Detached scalars by name, for metrics.jsonl and the progress bar."""


class TrainingMethod(Spec):
    """A method that moves weights by gradient descent on a loss."""

    family: ClassVar[Family] = "training"
    learning_rate: ClassVar[float] = 1e-5
    """Taken when the run says no learning rate (for full weights; LoRA takes ten times as much)."""

    parameters: str = ".*"
    """Regular expression; the weights whose full name it matches are trained, all others are frozen."""

    @property
    def needs(self) -> frozenset[Need]:
        """What `train.py` computes with the start model before the loop."""
        return frozenset()

    @property
    def uses_retain(self) -> bool:
        return False

    @property
    def uses_refusals(self) -> bool:
        return False

    @property
    def pad_side(self) -> Literal["right", "left"]:
        """Where batches are padded; it changes no loss but one that counts pads."""
        return "right"

    def candidates(self, model: nn.Module) -> set[str]:
        """The weights among which `parameters` chooses; all, unless a method moves weights of certain roles."""
        return {name for name, _ in model.named_parameters()}

    def forget_parts(self, request: Request) -> tuple[tuple[int, ...], ...]:
        """Forget rows that are not to be mixed in a step, which the steps take in turn; none: all are one set.

        Called before a model is loaded, and so the place to refuse fields that do not fit the data.
        """
        return ()

    def prepare(self, model: nn.Module, probes: Sequence[Tokens]) -> Mapping[str, Tensor]:
        """What the loss or `finished` takes from the start model beyond `needs`, measured once before the loop.

        probes  up to 16 fixed rows of each forget part, one batch a part
        """
        return {}

    def finished(self, model: nn.Module, probes: Sequence[Tokens], prepared: Mapping[str, Tensor]) -> str | None:
        """Asked every `stop_every` steps, without gradient: why the run is to end now, or nothing."""
        return None

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Pure: the same model and batch give the same loss; gradients reach only the weights that require them."""
        raise TypeError(f"{type(self).__name__} defines no loss")


class State(Mapping[str, Tensor]):
    """What a guard knows: small tensors by name on the CPU, saved as guard.safetensors, and files, saved as `assets/`.

    Each file gets its checksum in the manifest, and is compared with it when the guard is loaded.
    """

    def __init__(self, tensors: Mapping[str, Tensor], assets: Path | None = None) -> None:
        """assets: folder of files, such as a fitted encoder; None where there are none."""
        self._tensors, self.assets = dict(tensors), assets

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def having(self, tensors: Mapping[str, Tensor]) -> "State":
        """The same with these tensors beside or in place of its own."""
        return State({**self._tensors, **tensors}, self.assets)


Objective = Callable[[State], float]
"""How far a guarded model is from what it should score, 0 at best: what a guard without gradients is tuned by."""


class Resources(NamedTuple):
    """What `GuardingMethod.fit` is given beside the data."""

    objective: Objective | None = None
    """There where the method says `needs_objective`."""
    assets: Path | None = None
    """An empty folder for files that belong to the state."""


NOTHING = Resources()


class GuardingMethod(Spec):
    """A method that leaves the weights alone and changes what the model does with them, by hooks.

    Whatever it decides or draws, it decides per row: the same row gives the same values alone and in any batch, under padding
    on either side, with and without a key-value cache, under beams and `num_return_sequences`.
    """

    family: ClassVar[Family] = "guarding"

    canaries: int = Field(4, ge=0)
    """How many forget prompts, and as many retain prompts, go as tokens into the artifact: whoever loads it checks by them that
    the guard acts. 0 leaves no text of the forget set in the artifact, and no check."""

    def require(self, request: Request) -> None:
        """Raises where the request lacks what the method needs; called before a model is loaded."""

    @property
    def needs_objective(self) -> bool:
        """Whether `fit` has to measure how a state scores."""
        return False

    def fit(self, model: nn.Module, request: Request, encoder: Encoder, resources: Resources = NOTHING) -> State:
        """What `attach` needs, from forward passes over the request; the model is left as it was."""
        raise TypeError(f"{type(self).__name__} fits nothing")

    def attach(self, model: nn.Module, state: State, encoder: Encoder) -> AbstractContextManager[None]:
        """While it lasts, the model is guarded; afterwards no hook is left, whatever happened."""
        raise TypeError(f"{type(self).__name__} attaches nothing")

    def summary(self, state: State) -> str:
        """One or two sentences for the card and the log: what was fitted. No text of the forget set."""
        raise TypeError(f"{type(self).__name__} says nothing of its state")


ObjectiveBuilder = Callable[[GuardingMethod, nn.Module, Request, Encoder], Objective]
"""Makes the objective of a method from the model and the data; `evaluation.objectives` has it."""


class InPlaceEditing(Spec):
    """A method that changes a model's weights by what its activations are, without gradients or other checkpoints."""

    family: ClassVar[Family] = "editing"

    def require(self, request: Request) -> None:
        """Raises where the request lacks what the method needs; called before a model is loaded."""

    def apply(self, model: nn.Module, request: Request, encoder: Encoder) -> str:
        """Changes the weights; gives one or two sentences for the card and the log."""
        raise TypeError(f"{type(self).__name__} changes nothing")


class ComposedMethod(Spec):
    """A method that runs others in sequence, each in a folder of its own inside the run's, and makes one artifact of theirs."""

    family: ClassVar[Family] = "composed"

    def require(self, request: Request) -> None:
        """Raises where the request lacks what the method needs; called before a model is loaded."""
