"""DARE: seeded coins that belong to positions, and the expectation that they keep."""

import pytest
import torch

from expunge.methods.editing import DareLinear, DareTies
from expunge.methods.editing.arithmetic import drop

from .conftest import whole_piece

N = 200_000


def kept(seed: int = 0, model: int = 0, name: str = "w", start: int = 0, size: int = N, density: float = 0.3) -> torch.Tensor:
    return drop(torch.ones(size), density, seed=seed, model=model, name=name, start=start).bool()


def test_the_share_that_stays_is_the_density() -> None:
    for density in (0.05, 0.3, 0.9):
        share = kept(density=density).double().mean().item()
        assert abs(share - density) < 5 * (density * (1 - density) / N) ** 0.5


@pytest.mark.parametrize("start", [0, 1, 7, 8, 999, 65536, 123_457])
def test_a_coin_belongs_to_its_position_wherever_a_piece_begins(start: int) -> None:
    assert torch.equal(kept(start=start, size=1000), kept()[start : start + 1000])


def test_seed_model_and_name_each_give_other_coins() -> None:
    for other in (kept(seed=1), kept(model=1), kept(name="v")):
        agreement = (other == kept()).double().mean().item()
        assert abs(agreement - (0.3**2 + 0.7**2)) < 0.01


def test_full_density_keeps_everything() -> None:
    assert kept(density=1.0, size=100).all()


def test_the_expected_difference_is_kept() -> None:
    base = torch.zeros(N)
    models = [torch.full((N,), 1.0), torch.full((N,), 0.5)]
    method = DareLinear(density=0.2, weights=(1, 2), scale=-1.5)
    values = method.edit(whole_piece(method, base, models)).values_E
    assert abs(values.double().mean().item() - -1.5 * (1.0 + 2 * 0.5)) < 0.03


def test_without_rescaling_survivors_stay_as_they_are() -> None:
    method = DareLinear(density=0.2, rescale=False)
    values = method.edit(whole_piece(method, torch.zeros(N), [torch.full((N,), 3.0)])).values_E
    assert set(values.tolist()) == {0.0, 3.0}


def test_dare_ties_is_the_mean_of_survivors_that_agree() -> None:
    base = torch.zeros(N)
    models = [torch.full((N,), 1.0), torch.full((N,), -0.25)]
    method = DareTies(density=0.5)
    edited = method.edit(whole_piece(method, base, models))
    first = drop(torch.ones(N), 0.5, seed=0, model=0, name="w", start=0)
    second = drop(torch.ones(N), 0.5, seed=0, model=1, name="w", start=0)
    assert torch.equal(edited.values_E, torch.where(first > 0, 2.0, -0.5 * second))
    assert edited.kept == (int(first.sum()), int(second.sum()))
    assert edited.outvoted == int((first * second).sum())
