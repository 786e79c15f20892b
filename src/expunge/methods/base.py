"""Defines Spec, the base class of all methods, and the interface of each family of methods.

A method is a frozen value: its fields are the hyperparameters, its docstring gives the formula and the paper, and its one or two
pure functions compute it. The runtimes and the loaders of artifacts call these functions; a method never opens a file, never owns
an optimizer and never chooses a device. The interface of training methods is in `methods/training/base.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict, Field, field_validator

from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.described import Described

if TYPE_CHECKING:
    from torch import Tensor, nn

    from expunge.guarding.forward_pass import Counts


Family = Literal["training", "editing", "guarding", "composed"]


class Spec(Described):
    """The fields of a method; each attribute docstring is also the `--help` text of its flag."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    family: ClassVar[Family]
    paper: ClassVar[str]
    """Where the method comes from: authors, year, arXiv number."""
    formula: ClassVar[str]
    """What it does, in one line of plain text."""
    cost: ClassVar[str]
    """Forward and backward passes of one step, and what is kept in memory beside one model."""
    purpose: ClassVar[str]
    """What the method is for, in plain words; shown by `expunge methods`."""
    weakness: ClassVar[str]
    """Where the method falls short, in plain words; shown by `expunge methods`."""

    @field_validator("*")
    @classmethod
    def _is_a_number(cls, value: Any) -> Any:
        if isinstance(value, float) and math.isnan(value):
            raise ValueError("nan is not a number")
        return value

    @classmethod
    def method_name(cls) -> str:
        """Returns the method's name on the command line and in YAML."""
        name: str = cls.__pydantic_fields__["name"].default
        return name


class State(Mapping[str, "Tensor"]):
    """The data of a fitted guard: small CPU tensors by name (guard.safetensors), and optional files (`assets/`).

    Each file gets its checksum in the manifest, and is compared with it when the guard is loaded.
    """

    def __init__(self, tensors: Mapping[str, Tensor], assets: Path | None = None) -> None:
        """assets: folder of files, such as a fitted encoder; None if there are none."""
        self._tensors, self.assets = dict(tensors), assets

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def having(self, tensors: Mapping[str, Tensor]) -> State:
        """Returns a copy in which these tensors are added or replaced."""
        return State({**self._tensors, **tensors}, self.assets)


Objective = Callable[[State], float]
"""Maps a state to the distance between the guarded model's scores and the target scores; 0 is best. Used to tune guards without
gradients."""


class Resources(NamedTuple):
    """Inputs of `GuardingMethod.fit` besides the data."""

    objective: Objective | None = None
    """Set if the method's `needs_objective` is true."""
    assets: Path | None = None
    """An empty folder for files that belong to the state."""
    reported: Objective | None = None
    """The objective on rows that the tuning does not see, by which its result is reported."""


NOTHING = Resources()


class GuardingMethod(Spec):
    """Base class of guards: methods that leave the weights unchanged and alter the forward pass with hooks.

    Every decision and random draw is made per row: a row gives the same values alone and in any batch, with padding
    on either side, with and without a key-value cache, with beam search and `num_return_sequences`.
    """

    family: ClassVar[Family] = "guarding"

    canaries: int = Field(4, ge=0)
    """Number of forget prompts, and of retain prompts, stored as tokens in the artifact. Loading the artifact checks on them
    that the guard acts. With 0, no text of the forget set is stored, and nothing is checked."""

    def require(self, request: Request) -> None:
        """Raises ExpungeError if the request lacks what the method needs; called before a model is loaded."""

    @property
    def needs_objective(self) -> bool:
        """Returns whether `fit` needs an objective that scores a state."""
        return False

    def fit(self, model: nn.Module, request: Request, encoder: Encoder, resources: Resources = NOTHING) -> State:
        """Computes what `attach` needs, by forward passes over the request; the model is left as it was."""
        raise TypeError(f"{type(self).__name__} fits nothing")

    def attach(self, model: nn.Module, state: State, encoder: Encoder) -> AbstractContextManager[Counts]:
        """Context manager that guards the model and yields the counts of what it did; on exit all hooks are removed, even after
        an error."""
        raise TypeError(f"{type(self).__name__} attaches nothing")

    def decision(self, model: nn.Module, state: State, encoder: Encoder, ids: tuple[int, ...]) -> str:
        """Returns what the guard decides about a prompt, as text. Keys and values of a common beginning of two prompts are equal
        only if it is the same; empty where they never depend on the rest of the prompt."""
        return ""

    def summary(self, state: State) -> str:
        """Describes what was fitted in one or two sentences, for the card and the log, without text of the forget set."""
        raise TypeError(f"{type(self).__name__} says nothing of its state")


Part = Literal["tuning", "reported"]
"""Which forget rows an objective is computed on; the two parts have no row in common."""
ObjectiveBuilder = Callable[["GuardingMethod", "nn.Module", "Request", "Encoder", Part], Objective]
"""Builds the objective of a method from the model and the data; implemented in `evaluation.objectives`."""


class InPlaceEditing(Spec):
    """Base class of methods that change a model's weights from its activations or gradients, without a training loop or other
    checkpoints."""

    family: ClassVar[Family] = "editing"

    def require(self, request: Request) -> None:
        """Raises ExpungeError if the request lacks what the method needs; called before a model is loaded."""

    def apply(self, model: nn.Module, request: Request, encoder: Encoder) -> str:
        """Changes the weights in place; returns one or two sentences for the card and the log."""
        raise TypeError(f"{type(self).__name__} changes nothing")


class ComposedMethod(Spec):
    """Base class of methods that run others in sequence, each in its own subfolder of the run, and combine their results into
    one artifact."""

    family: ClassVar[Family] = "composed"
    stage_rate: ClassVar[float | None] = None
    """Peak learning rate of its stages for a model of 7 billion weights; None: that of the method in its field `each`."""

    def require(self, request: Request) -> None:
        """Raises ExpungeError if the request lacks what the method needs; called before a model is loaded."""
