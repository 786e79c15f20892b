"""Defines the interface of weight-editing methods: a pure function on pieces of one tensor, so that weights may exceed memory.

    base   w_1 w_2 w_3 ...      float32, one piece of one tensor
    inputs d_1 d_2 d_3 ...      one per model: its difference to the base, or its weights
    edit   -> v_1 v_2 v_3 ...   the new weights, float32; the engine rounds once

Quantities that depend on more than a piece (a threshold over a tensor or a model, the angle between two tensors) are measured
by the engine first and passed with the piece, so that a result depends neither on the size of pieces nor on the number of
threads.

Shape suffix: E, elements of a piece in row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator

from expunge.errors import ExpungeError
from expunge.methods.base import Family, Spec

if TYPE_CHECKING:
    from torch import Tensor


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
"""Shares of entries that are kept, in (0, 1]: one number for all models, or one for each."""

Weights = Annotated[tuple[float, ...], BeforeValidator(_listed)]
"""One weight per model; empty: all 1."""


class Band(NamedTuple):
    """A range of entries to keep, by magnitude: the `skip` largest are dropped, the next `keep` are kept."""

    skip: int
    keep: int


class Cut(NamedTuple):
    """A band as magnitudes: entries with low <= |x| <= high are kept; positions decide where |x| equals an end."""

    low: float = 0.0
    low_end: int | None = None
    """Entries with |x| = low are kept only before this position; None: everywhere."""
    high: float = float("inf")
    high_end: int = 0
    """Entries with |x| = high are dropped before this position."""


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
    """One input for each model whose tensor differs from the base."""
    models: tuple[int, ...]
    """Indices of these models in the list of models."""
    among: int
    """Number of all models."""
    cuts: tuple[Cut, ...] = ()
    """One for each input, if the method asked for a band."""
    offset: int = 0
    """Position of the tensor among all that the cuts were measured over, from which ties are counted."""
    angle: Angle | None = None


class Edited(NamedTuple):
    values_E: Tensor
    kept: tuple[int, ...] = ()
    """Number of entries of each input that were kept; empty for methods that do not sparsify."""
    outvoted: int = 0
    """Number of kept entries that lost the sign election."""


class EditingMethod(Spec):
    """A method that computes new weights from those of a base model and of others."""

    family: ClassVar[Family] = "editing"
    reads: ClassVar[Literal["differences", "weights"]] = "differences"
    """What the inputs of a piece are."""
    measures_angle: ClassVar[bool] = False

    @property
    def trims_over(self) -> Scope:
        """Returns what the band of a model is measured over."""
        return "per_tensor"

    @property
    def exact_ties(self) -> bool:
        """Returns whether exactly `Band.keep` entries are kept (the first ones in order), or all that equal the last one."""
        return False

    def check(self, models: int) -> None:
        """Raises ExpungeError if the fields do not fit this number of models."""

    def keeps_equal(self, models: int) -> bool:
        """Returns whether a tensor that no model changes stays as it is, so that its bytes can be copied."""
        return True

    def band(self, model: int, entries: int) -> Band | None:
        """Returns which of `entries` differences of a model are kept; None: all."""
        return None

    def edit(self, piece: Piece) -> Edited:
        """Computes the new weights of a piece. Pure: the result does not depend on where pieces begin and end."""
        raise TypeError(f"{type(self).__name__} defines no edit")


def one_each(name: str, values: Sequence[float], models: int) -> None:
    """Raises ExpungeError unless there is one value for all models or one for each."""
    if len(values) not in (0, 1, models):
        raise ExpungeError(f"--{name} has {len(values)} numbers for {models} models; give one for all, or one for each in order")


def of_model(values: Sequence[float], model: int) -> float:
    """Returns the value of a model, where a single value stands for all and no value means 1."""
    return 1.0 if not values else values[model if len(values) > 1 else 0]


def weights_of(values: Sequence[float], models: int) -> list[float]:
    return [of_model(values, model) for model in range(models)]
