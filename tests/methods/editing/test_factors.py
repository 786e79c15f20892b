"""The arithmetic of adapters against its formulas, written out on whole matrices in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expunge.methods.editing import AdapterAddition, AdapterMethod, AdapterSubtraction, Ethos, ExtSub
from expunge.methods.editing.factors import Factors, no_change, recompress


def factors(seed: int, rank: int, outputs: int = 9, inputs: int = 7) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    b, a = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((outputs, rank), (rank, inputs)))
    return Factors(b.numpy(), a.numpy())


def dense(found: Factors) -> Tensor:
    return torch.from_numpy(found.b_OR @ found.a_RI)


def literal_ext_sub(plus_OI: Tensor, minus_OI: Tensor, alpha: float) -> Tensor:
    """Section 3 of the paper, step by step, as the release does it."""
    p, q = plus_OI / plus_OI.norm(dim=1, keepdim=True), minus_OI / minus_OI.norm(dim=1, keepdim=True)
    f = (p + q) / (p + q).norm(dim=1, keepdim=True)
    shared = (minus_OI * f).sum(1, keepdim=True) * f
    return plus_OI - alpha * minus_OI + alpha * shared


class TestExtSub:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5), st.floats(-2, 3, allow_nan=False), st.floats(0.01, 100))
    def test_the_closed_form_is_the_literal_formula(self, seed: int, r: int, s: int, alpha: float, scale: float) -> None:
        plus, minus = factors(seed, r), factors(seed + 1, s)
        minus = Factors(minus.b_OR * scale, minus.a_RI)
        found, expected = dense(ExtSub(alpha=alpha).edit(plus, minus)), literal_ext_sub(dense(plus), dense(minus), alpha)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * scale)

    def test_it_is_of_the_sum_of_ranks(self) -> None:
        made = ExtSub().edit(factors(0, 2), factors(1, 3))
        assert made.rank == 5
        assert torch.linalg.matrix_rank(dense(made)) == 5

    def test_alpha_zero_is_the_expert(self) -> None:
        torch.testing.assert_close(dense(ExtSub(alpha=0).edit(factors(0, 2), factors(1, 3))), dense(factors(0, 2)))

    @pytest.mark.parametrize("times", [1e-3, 1.0, 50.0])
    def test_an_anti_expert_in_the_expert_s_direction_leaves_the_expert(self, times: float) -> None:
        plus = factors(0, 2)
        made = ExtSub(alpha=0.7).edit(plus, Factors(plus.b_OR * times, plus.a_RI))
        torch.testing.assert_close(dense(made), dense(plus), rtol=1e-9, atol=1e-9)

    def test_opposite_rows_give_twice_the_expert_where_the_release_gives_nan(self) -> None:
        plus = factors(0, 2)
        made = ExtSub(alpha=1).edit(plus, Factors(-plus.b_OR, plus.a_RI))
        assert torch.isnan(literal_ext_sub(dense(plus), -dense(plus), 1)).all()
        torch.testing.assert_close(dense(made), 2 * dense(plus))

    def test_zero_rows_take_the_limits(self) -> None:
        plus, minus = factors(0, 2), factors(1, 3)
        plus.b_OR[2], minus.b_OR[4] = 0, 0
        plus.b_OR[6], minus.b_OR[6] = 0, 0
        made = dense(ExtSub(alpha=0.5).edit(plus, minus))
        assert torch.isfinite(made).all()
        assert (made[2] == 0).all()
        torch.testing.assert_close(made[4], dense(plus)[4])
        assert (made[6] == 0).all()
        subtracted = dense(ExtSub(alpha=0.5, zero_expert="subtract").edit(plus, minus))
        torch.testing.assert_close(subtracted[2], -0.5 * dense(minus)[2])
        torch.testing.assert_close(subtracted[0], made[0])

    def test_a_module_that_the_expert_lacks_is_dropped_or_subtracted(self) -> None:
        minus = factors(1, 3)
        assert (dense(ExtSub().edit(no_change(minus), minus)) == 0).all()
        made = ExtSub(alpha=2, zero_expert="subtract").edit(no_change(minus), minus)
        torch.testing.assert_close(dense(made), -2 * dense(minus))
        torch.testing.assert_close(dense(ExtSub().edit(minus, no_change(minus))), dense(minus))

    def test_rows_are_independent_of_each_other(self) -> None:
        plus, minus, order = factors(0, 2), factors(1, 3), np.random.default_rng(0).permutation(9)
        turned = ExtSub().edit(Factors(plus.b_OR[order], plus.a_RI), Factors(minus.b_OR[order], minus.a_RI))
        torch.testing.assert_close(dense(turned), dense(ExtSub().edit(plus, minus))[order])


@pytest.mark.parametrize(
    ("method", "sign"), [(AdapterSubtraction(alpha=0.3), -0.3), (AdapterAddition(alpha=0.3), 0.3), (AdapterSubtraction(), -1)]
)
def test_subtraction_and_addition_are_exact(method: AdapterMethod, sign: float) -> None:
    plus, minus = factors(0, 2), factors(1, 3)
    made = method.edit(plus, minus)
    torch.testing.assert_close(dense(made), dense(plus) + sign * dense(minus))
    rows, other = dense(plus).numpy(), dense(minus).numpy()
    np.testing.assert_allclose(method.edit_rows(rows, other), rows + sign * other, rtol=1e-12)


def test_rows_that_are_stored_as_they_are_follow_the_same_formula() -> None:
    plus, minus = dense(factors(0, 2)), dense(factors(1, 3))
    found = ExtSub(alpha=0.6).edit_rows(plus.numpy(), minus.numpy())
    torch.testing.assert_close(torch.from_numpy(found), literal_ext_sub(plus, minus, 0.6))


class TestFactors:
    def test_norms_and_products_need_no_matrix(self) -> None:
        plus, minus = factors(0, 2), factors(1, 6, inputs=7)
        for one in (plus, minus):
            torch.testing.assert_close(torch.from_numpy(one.row_norms), dense(one).norm(dim=1))
        assert plus.dot(minus) == pytest.approx(float((dense(plus) * dense(minus)).sum()))
        assert no_change(plus).row_norms.tolist() == [0] * 9

    def test_recompression_is_the_truncated_decomposition_and_states_its_residual(self) -> None:
        whole = ExtSub().edit(factors(0, 3), factors(1, 3))
        made, residual = recompress(whole, 4)
        u, s, vh = torch.linalg.svd(dense(whole))
        torch.testing.assert_close(dense(made), (u[:, :4] * s[:4]) @ vh[:4])
        assert residual == pytest.approx(float((dense(whole) - dense(made)).norm() / dense(whole).norm()))
        assert 0 < residual < 1
        assert recompress(whole, 6) == (whole, 0.0)


class TestEthos:
    def test_what_is_small_in_the_base_s_directions_stays(self) -> None:
        base, plus, minus = (dense(factors(seed, 7)) for seed in (5, 0, 1))
        alone, anti = factors(0, 7), factors(1, 7)
        made = dense(Ethos(alpha=0.5, threshold=0.4).edit(alone, anti, base.numpy()))
        u, _, vh = torch.linalg.svd(base + plus, full_matrices=False)
        projected = u.T @ minus @ vh.T
        kept = projected * (projected.abs() >= 0.4 * projected.abs().max())
        assert 0 < (kept != 0).sum() < kept.numel()
        torch.testing.assert_close(made, plus - 0.5 * u @ kept @ vh)

    def test_without_threshold_it_subtracts_what_lies_in_the_base_s_span(self) -> None:
        base, plus, minus = dense(factors(5, 7)), factors(0, 2), factors(1, 2)
        u, _, vh = torch.linalg.svd(base + dense(plus), full_matrices=False)
        made = dense(Ethos(alpha=1, threshold=0).edit(plus, minus, base.numpy()))
        torch.testing.assert_close(made, dense(plus) - u @ (u.T @ dense(minus) @ vh.T) @ vh)

    def test_a_large_negative_entry_counts_by_its_magnitude(self) -> None:
        """The released code compares with the largest signed entry: this one would be cut by nothing."""
        base = np.diag([2.0, 1.0])
        anti = Factors(np.eye(2), np.diag([-1.0, 0.3]))
        made = dense(Ethos(alpha=1, threshold=0.5).edit(no_change(anti), anti, base))
        torch.testing.assert_close(made, torch.tensor([[1.0, 0], [0, 0]], dtype=torch.float64))


def test_ratios_of_very_unlike_norms_stay_finite() -> None:
    plus, minus = factors(0, 2), factors(1, 2)
    made = ExtSub().edit(Factors(plus.b_OR * 1e-30, plus.a_RI), Factors(minus.b_OR * 1e3, minus.a_RI))
    assert np.isfinite(made.b_OR).all()
    norms = dense(made).norm(dim=1) / dense(minus).norm(dim=1) / 1e3
    assert all(n <= math.sqrt(2) for n in norms.tolist())
