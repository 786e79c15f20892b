"""Pieces of one made-up tensor, without files."""

from collections.abc import Callable, Sequence

import pytest
from torch import Tensor

from expunge.methods.editing.base import Cut, EditingMethod, Piece


def whole_piece(method: EditingMethod, base: Tensor, models: Sequence[Tensor], name: str = "w", start: int = 0) -> Piece:
    """A tensor in one piece; the cuts are found by sorting."""
    base, models = base.float(), [m.float() for m in models]
    inputs = [m - base if method.reads == "differences" else m.clone() for m in models]
    return Piece(
        name=name,
        start=start,
        base_E=base,
        inputs=tuple(inputs),
        models=tuple(range(len(models))),
        among=len(models),
        cuts=tuple(sorted_cut(method, i, d) for i, d in enumerate(inputs)),
    )


def sorted_cut(method: EditingMethod, model: int, difference: Tensor) -> Cut:
    band = method.band(model, len(difference))
    if band is None:
        return Cut()
    ordered = difference.abs().sort(descending=True).values
    low = float(ordered[band.skip + band.keep - 1])
    high = float(ordered[band.skip]) if band.skip else float("inf")
    return Cut(low=low, high=high)


@pytest.fixture
def edit() -> Callable[..., Tensor]:
    def run(method: EditingMethod, base: Tensor, models: Sequence[Tensor]) -> Tensor:
        method.check(len(models))
        return method.edit(whole_piece(method, base, models)).values_E

    return run
