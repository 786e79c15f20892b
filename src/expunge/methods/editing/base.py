"""The editing contract: a pure function on the elements of one tensor, called piece by piece over weights larger than memory.

    base   w_1 w_2 w_3 ...      float32, one piece of one tensor
    inputs d_1 d_2 d_3 ...      one per model: its difference to the base, or its weights
    edit   -> v_1 v_2 v_3 ...   the new weights, float32; the engine rounds once

What depends on more than a piece (a threshold over a tensor or a model, the angle between two tensors) is measured by the
engine first and arrives in the piece as data, so that a result depends neither on the size of pieces nor on threads.

Shape suffix: E, elements of a piece in row-major order.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.methods.base import Family, Spec

Scope = Literal["global", "global_changed", "per_tensor"]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


def _shares(values: tuple[float, ...]) -> tuple[float, ...]:
    for value in values:
        if not 0 < value <= 1:
            raise ValueError(f"a density is the share of entries that stays, above 0 and at most 1; {value} is not")
    if not values:
        raise ValueError("give one density for all models, or one for each")
    return values


Shares = Annotated[tuple[float, ...], BeforeValidator(_listed), AfterValidator(_shares)]
"""Kept shares in (0, 1]: one for all models, or one for each."""

Weights = Annotated[tuple[float, ...], BeforeValidator(_listed)]
"""One number per model; none: all 1."""


class Band(NamedTuple):
    """Which entries stay, by magnitude: without the `skip` largest, the `keep` next ones."""

    skip: int
    keep: int


class Cut(NamedTuple):
    """A band as it was found in the numbers: low <= |x| <= high stays, and position decides where |x| equals an end."""

    low: float = 0.0
    low_end: int | None = None
    """Entries with |x| = low stay only before this position; None: everywhere."""
    high: float = float("inf")
    high_end: int = 0
    """Entries with |x| = high go where they stand before this position."""


class Angle(NamedTuple):
    """Sums over a whole tensor, in float64: <base, base>, <model, model>, <base, model>."""

    base: float
    model: float
    dot: float


class Piece(NamedTuple):
    """Consecutive elements of one tensor. `edit` owns the inputs and may overwrite them; `base_E` it leaves alone."""

    name: str
    start: int
    """Position of the first element in the flattened tensor."""
    base_E: Tensor
    inputs: tuple[Tensor, ...]
    """Of those models whose tensor differs from the base: for them a difference is not zero everywhere."""
    models: tuple[int, ...]
    """Their places in the list of models."""
    among: int
    """How many models there are in all."""
    cuts: tuple[Cut, ...] = ()
    """One for each input, where the method asked for a band."""
    offset: int = 0
    """Position of the tensor in the scope of the cuts: ties are counted from there."""
    angle: Angle | None = None


class Edited(NamedTuple):
    values_E: Tensor
    kept: tuple[int, ...] = ()
    """Entries of each input that survived the sparsifying; none for methods that do not sparsify."""
    outvoted: int = 0
    """Surviving entries that lost the election of a sign."""


class EditingMethod(Spec):
    """A method that computes new weights from those of a base model and of others."""

    family: ClassVar[Family] = "editing"
    reads: ClassVar[Literal["differences", "weights"]] = "differences"
    """What the inputs of a piece are."""
    measures_angle: ClassVar[bool] = False

    @property
    def trims_over(self) -> Scope:
        """What the band of a model is taken over."""
        return "per_tensor"

    @property
    def exact_ties(self) -> bool:
        """Whether exactly `Band.keep` entries stay, the first ones in order, or all that equal the last one."""
        return False

    def check(self, models: int) -> None:
        """Raises ExpungeError when the fields do not fit so many models."""

    def keeps_equal(self, models: int) -> bool:
        """Whether a tensor that no model changes stays as it is, so that its bytes can be copied."""
        return True

    def band(self, model: int, entries: int) -> Band | None:
        """Which of `entries` differences of a model stay; None: all."""
        return None

    def edit(self, piece: Piece) -> Edited:
        """Pure: the same piece gives the same numbers, wherever the cut between pieces runs."""
        raise TypeError(f"{type(self).__name__} defines no edit")


def one_each(name: str, values: Sequence[float], models: int) -> None:
    """Raises unless there is one value for all models or one for each."""
    if len(values) not in (0, 1, models):
        raise ExpungeError(f"--{name} has {len(values)} numbers for {models} models; give one for all, or one for each in order")


def of_model(values: Sequence[float], model: int) -> float:
    """The value of a model where one stands for all and none means 1."""
    return 1.0 if not values else values[model if len(values) > 1 else 0]


def weights_of(values: Sequence[float], models: int) -> list[float]:
    return [of_model(values, model) for model in range(models)]
