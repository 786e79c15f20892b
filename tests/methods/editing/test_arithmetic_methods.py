"""Linear, task arithmetic, slerp and breadcrumbs against their formulas in float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.methods.editing import Breadcrumbs, Linear, Slerp, TaskArithmetic
from expunge.methods.editing.base import Angle, Piece

from .conftest import whole_piece

Edit = Callable[..., Tensor]


def noise(count: int, size: int = 300, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for _ in range(count)]


class TestLinear:
    def test_is_the_weighted_mean_and_ignores_the_base(self, edit: Edit) -> None:
        base, a, b = noise(3)
        expected = (0.25 * a.double() + 0.75 * b.double()).float()
        assert torch.allclose(edit(Linear(weights=(1, 3)), base, [a, b]), expected, atol=1e-6)

    def test_without_normalization_is_the_weighted_sum(self, edit: Edit) -> None:
        base, a, b = noise(3)
        expected = (2 * a.double() - 3 * b.double()).float()
        assert torch.allclose(edit(Linear(weights=(2, -3), normalize=False), base, [a, b]), expected, atol=1e-5)

    def test_a_model_that_equals_the_base_still_counts(self) -> None:
        base, a = noise(2)
        piece = Piece(name="w", start=0, base_E=base, inputs=(a.clone(),), models=(1,), among=2)
        assert torch.allclose(Linear().edit(piece).values_E, (a + base) / 2, atol=1e-6)

    def test_weights_whose_sum_is_not_positive_are_refused(self) -> None:
        with pytest.raises(ExpungeError, match="sum to -1"):
            Linear(weights=(1, -2)).check(2)

    def test_copies_equal_tensors_only_when_the_weights_sum_to_one(self) -> None:
        assert Linear(weights=(2, 5)).keeps_equal(2)
        assert not Linear(weights=(2, 5), normalize=False).keeps_equal(2)


class TestTaskArithmetic:
    def test_adds_scaled_differences(self, edit: Edit) -> None:
        base, a, b = (t.double() for t in noise(3))
        expected = base - 0.5 * (2 * (a - base) + (b - base))
        found = edit(TaskArithmetic(weights=(2, 1), scale=-0.5), base, [a, b])
        assert torch.allclose(found, expected.float(), atol=2e-6)

    def test_negation_undoes_addition(self, edit: Edit) -> None:
        base, model = noise(2)
        there = edit(TaskArithmetic(), base, [model])
        back = edit(TaskArithmetic(scale=-1), base, [2 * base - there])
        assert torch.allclose(back, model, atol=1e-6)

    def test_normalized_it_is_the_mean_difference_over_all_models(self) -> None:
        base, a = noise(2)
        piece = Piece(name="w", start=0, base_E=base, inputs=(a - base,), models=(1,), among=2)
        found = TaskArithmetic(normalize=True).edit(piece).values_E
        assert torch.allclose(found, base + (a - base) / 2, atol=1e-6)

    def test_cancelling_normalization_is_refused(self) -> None:
        with pytest.raises(ExpungeError, match=r"--scale -1"):
            TaskArithmetic(weights=(-1, -1), normalize=True).check(2)


class TestSlerp:
    def run(self, t: float, a: Tensor, b: Tensor) -> Tensor:
        x, y = a.double(), b.double()
        piece = whole_piece(Slerp(t=t), a, [b])._replace(angle=Angle(float(x @ x), float(y @ y), float(x @ y)))
        return Slerp(t=t).edit(piece).values_E

    @settings(max_examples=40, deadline=None)
    @given(t=st.floats(0, 1), seed=st.integers(0, 10_000))
    def test_runs_along_the_arc(self, t: float, seed: int) -> None:
        a, b = noise(2, seed=seed)
        b = b / b.norm() * a.norm()
        found = self.run(t, a, b)
        assert found.norm().item() == pytest.approx(a.norm().item(), rel=1e-5)
        whole = math.acos(torch.dot(a.double(), b.double()).item() / (a.double().norm() * b.double().norm()).item())
        cosine = torch.dot(a.double(), found.double()).item() / (a.double().norm() * found.double().norm()).item()
        assert cosine == pytest.approx(math.cos(t * whole), abs=1e-5)

    def test_ends_at_the_ends(self) -> None:
        a, b = noise(2)
        assert torch.allclose(self.run(0.0, a, b), a, atol=1e-6)
        assert torch.allclose(self.run(1.0, a, b), b, atol=1e-6)

    def test_nearly_parallel_and_zero_tensors_take_the_chord(self) -> None:
        a = noise(1)[0]
        assert torch.allclose(self.run(0.25, a, 3 * a), 1.5 * a, atol=1e-5)
        assert torch.allclose(self.run(0.25, torch.zeros(300), a), 0.25 * a, atol=1e-6)

    def test_takes_one_model(self) -> None:
        with pytest.raises(ExpungeError, match="one model, not to 2"):
            Slerp().check(2)


class TestBreadcrumbs:
    @settings(max_examples=40, deadline=None)
    @given(density=st.floats(0.05, 0.95), gamma=st.floats(0, 0.3), seed=st.integers(0, 1000))
    def test_leaves_out_the_largest_and_the_smallest(self, density: float, gamma: float, seed: int) -> None:
        base, model = noise(2, seed=seed)
        method = Breadcrumbs(density=density, gamma=gamma)
        difference = (model - base).numpy()
        keep = max(1, int(density * 300))
        skip = min(int(gamma * 300), 300 - keep)
        order = np.argsort(-np.abs(difference))
        expected = np.zeros(300, np.float32)
        expected[order[skip : skip + keep]] = difference[order[skip : skip + keep]]
        edited = method.edit(whole_piece(method, base, [model]))
        assert torch.equal(edited.values_E, base + torch.from_numpy(expected))
        assert edited.kept == (keep,)

    def test_the_whole_density_keeps_outliers_too(self, edit: Edit) -> None:
        base, model = noise(2)
        assert torch.allclose(edit(Breadcrumbs(density=1.0), base, [model]), model, atol=1e-6)
