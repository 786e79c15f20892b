"""TIES against the three steps written out, and the algebra that it promises."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.methods.editing import Ties
from expunge.methods.editing.arithmetic import trim
from expunge.methods.editing.base import Cut

from .conftest import whole_piece

Edit = Callable[..., Tensor]
COARSE = st.integers(-40, 40).map(lambda n: np.float32(n / 16))
"""A grid on which differences tie and cancel often, and on which float32 sums are exact."""


def models_of(count: int, size: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float32, (count + 1, size), elements=COARSE)


def reference(
    base: np.ndarray,
    models: np.ndarray,
    density: float,
    weights: np.ndarray,
    sign: str,
    cancelled: str,
    normalize: bool,
    scale: float,
) -> np.ndarray:
    """Element by element, in float64; all entries that equal the last one kept stay."""
    tau = (models - base).astype(np.float64)
    for row in tau:
        keep = max(1, int(density * len(row)))
        row[np.abs(row) < np.sort(np.abs(row))[-keep]] = 0
    tau *= weights[:, None]
    merged = np.zeros(len(base))
    for p in range(len(base)):
        column = tau[:, p]
        vote = np.sum(column if sign == "sum" else np.sign(column))
        s = np.sign(vote) if vote != 0 else (1.0 if cancelled == "positive" else 0.0)
        agree = (np.sign(column) == s) & (column != 0)
        if agree.any():
            merged[p] = column[agree].sum() / (weights[agree].sum() if normalize else 1.0)
    return base + scale * merged


@settings(max_examples=80, deadline=None)
@given(
    values=st.integers(1, 4).flatmap(lambda n: st.integers(1, 40).flatmap(lambda size: models_of(n, size))),
    density=st.floats(0.05, 1.0),
    sign=st.sampled_from(["sum", "count"]),
    cancelled=st.sampled_from(["base", "positive"]),
    normalize=st.booleans(),
    scale=st.sampled_from([1.0, -1.0, 0.5]),
    weighted=st.booleans(),
)
def test_equals_the_three_steps_written_out(
    values: np.ndarray, density: float, sign: str, cancelled: str, normalize: bool, scale: float, weighted: bool
) -> None:
    base, models = values[0], values[1:]
    weights = np.array([1.0, 2.0, 0.5, 4.0][: len(models)]) if weighted else np.ones(len(models))
    method = Ties(
        density=density,
        sign=sign,
        cancelled=cancelled,
        normalize=normalize,
        scale=scale,
        weights=tuple(weights) if weighted else (),
    )
    piece = whole_piece(method, torch.from_numpy(base), [torch.from_numpy(m) for m in models])
    expected = reference(base, models, density, weights, sign, cancelled, normalize, scale)
    np.testing.assert_allclose(method.edit(piece).values_E.numpy(), expected, rtol=1e-6, atol=1e-6)


def random_models(count: int, size: int = 500) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(size, generator=generator)
    return base, [base + 0.1 * torch.randn(size, generator=generator) for _ in range(count)]


def test_one_model_at_full_density_is_that_model_to_one_place(edit: Edit) -> None:
    base, (model,) = random_models(1)
    assert torch.allclose(edit(Ties(density=1.0), base, [model]), model, rtol=0, atol=2.4e-7)


def test_equal_models_give_the_trimmed_model(edit: Edit) -> None:
    base, (model,) = random_models(1)
    trimmed = trim(model - base, 0, Cut(low=float((model - base).abs().sort(descending=True).values[99])))
    assert torch.allclose(edit(Ties(density=0.2), base, [model] * 3), base + trimmed, rtol=0, atol=2.4e-7)


def test_negated_differences_give_the_negated_merge_bit_for_bit() -> None:
    zero, models = torch.zeros(500), random_models(3)[1]
    method = Ties(density=0.3)
    forward = method.edit(whole_piece(method, zero, models)).values_E
    backward = method.edit(whole_piece(method, zero, [-m for m in models])).values_E
    assert torch.equal(forward, -backward)


def test_the_order_of_models_does_not_matter_but_for_rounding(edit: Edit) -> None:
    base, models = random_models(4)
    assert torch.allclose(edit(Ties(), base, models), edit(Ties(), base, models[::-1]), rtol=0, atol=3e-7)


def test_entries_that_cancel_leave_the_base_or_take_the_positive_ones(edit: Edit) -> None:
    base, models = torch.ones(2), [torch.tensor([3.0, 0.0]), torch.tensor([-1.0, 2.0])]
    assert edit(Ties(density=1.0, cancelled="base"), base, models).tolist() == [1.0, 1.0]
    assert edit(Ties(density=1.0, cancelled="positive"), base, models).tolist() == [3.0, 2.0]
    assert edit(Ties(density=1.0), base, models).tolist() == [1.0, 1.0]
    assert edit(Ties(density=1.0, scope="per_tensor"), base, models).tolist() == [3.0, 2.0]


def test_a_model_of_its_own_density_is_trimmed_by_it() -> None:
    base, models = random_models(2)
    method = Ties(density=(0.1, 0.5))
    assert method.edit(whole_piece(method, base, models)).kept == (50, 250)


def test_outvoted_entries_are_counted() -> None:
    method = Ties(density=1.0)
    models = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, -3.0, 0.0])]
    edited = method.edit(whole_piece(method, torch.zeros(3), models))
    assert (edited.kept, edited.outvoted) == ((3, 2), 1)


class TestExactTies:
    def test_the_first_ones_stay(self) -> None:
        values = torch.tensor([1.0, -2.0, 2.0, 3.0, 2.0])
        assert trim(values, 0, Cut(low=2.0, low_end=3)).tolist() == [0, -2, 2, 3, 0]

    def test_positions_count_from_the_beginning_of_the_scope(self) -> None:
        assert trim(torch.tensor([2.0, 2.0, 2.0]), 100, Cut(low=2.0, low_end=101)).tolist() == [2, 0, 0]
        assert trim(torch.tensor([2.0, 2.0, 5.0]), 100, Cut(low=2.0, low_end=7)).tolist() == [0, 0, 5]
        assert trim(torch.tensor([2.0, 2.0, 5.0]), 0, Cut(low=2.0, low_end=7)).tolist() == [2, 2, 5]

    def test_at_the_upper_end_the_first_ones_go(self) -> None:
        values = torch.tensor([4.0, 3.0, -3.0, 3.0, 1.0, 0.5])
        assert trim(values, 0, Cut(low=1.0, high=3.0, high_end=3)).tolist() == [0, 0, 0, 3, 1, 0]

    def test_a_cut_at_zero_trims_nothing(self) -> None:
        assert trim(torch.tensor([0.0, 1e-45, -1.0]), 0, Cut()).tolist() == [0.0, torch.tensor(1e-45).item(), -1.0]


class TestRefusals:
    @pytest.mark.parametrize("density", [0, -0.1, 1.0001, 20, ()])
    def test_a_density_outside_of_0_to_1(self, density: float) -> None:
        with pytest.raises(ValidationError, match="density"):
            Ties(density=density)

    def test_negative_weights_with_normalization_show_the_right_spelling(self) -> None:
        with pytest.raises(ExpungeError, match=r"cancel.*--weights 1 1 --scale -1"):
            Ties(weights=(-1, -1)).check(2)
        Ties(weights=(-1, -1), normalize=False).check(2)

    def test_another_number_of_weights_than_models(self) -> None:
        with pytest.raises(ExpungeError, match=r"--weights has 2 numbers for 3 models"):
            Ties(weights=(1, 1)).check(3)

    def test_weights_that_are_all_zero(self) -> None:
        with pytest.raises(ExpungeError, match="nothing would be merged"):
            Ties(weights=(0, 0)).check(2)

    def test_an_unknown_field(self) -> None:
        with pytest.raises(ValidationError):
            Ties(denisty=0.2)
