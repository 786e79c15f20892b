"""Spec and the contracts of families: what a method is, whatever family it belongs to.

A method is a frozen value. Its fields are the experiment, its docstring is the paper, and its one or two pure functions
are the idea. The runtimes and the loaders of artifacts call them; a method never opens a file, never owns an optimizer and
never sees a device. The contract of training methods is in `methods/training/base.py`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.guarding.forward_pass import Counts

Family = Literal["training", "editing", "guarding", "composed"]


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
    purpose: ClassVar[str]
    """What it is for, in plain words; `expunge methods` lists it."""
    weakness: ClassVar[str]
    """Where it falls short, in plain words."""

    @field_validator("*")
    @classmethod
    def _is_a_number(cls, value: Any) -> Any:
        if isinstance(value, float) and math.isnan(value):
            raise ValueError("nan is not a number")
        return value

    @classmethod
    def method_name(cls) -> str:
        """The word on the command line and in YAML."""
        name: str = cls.model_fields["name"].default
        return name


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

    def attach(self, model: nn.Module, state: State, encoder: Encoder) -> AbstractContextManager[Counts]:
        """While it lasts, the model is guarded; afterwards no hook is left, whatever happened. Gives what it counts."""
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
