"""The 14 corruptions: what changes, how many coordinates of it, and the same in any batch."""

import pytest
import torch
from torch import Tensor

from expunge import ExpungeError
from expunge.guarding.embedding_corruption.corruptions import corrupt, drawn_coordinates, noise
from expunge.guarding.embedding_corruption.kinds import KINDS, PERMUTING, Kind
from expunge.guarding.random_bits import mix, uniform

N, D = 60, 40
KEYS = mix(torch.arange(N))
ROWS = torch.arange(N) // 12
VALUES = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
EDITING = [kind for kind in KINDS if kind not in PERMUTING]


def changed(kind: Kind, dims: int | None = 7, strength: float = 3.0, values: Tensor = VALUES) -> Tensor:
    return corrupt(values, kind, dims, strength, KEYS, ROWS)


@pytest.mark.parametrize("dims", [1, 7, D, None])
@pytest.mark.parametrize("kind", EDITING)
def test_exactly_so_many_coordinates_of_each_row_change(kind: Kind, dims: int | None) -> None:
    before = VALUES.clone()
    moved_ND = changed(kind, dims) != VALUES
    assert torch.equal(VALUES, before)
    assert (moved_ND.sum(dim=1) == (dims or D)).all()
    if kind.endswith("first_n"):
        assert moved_ND[:, : dims or D].all()


@pytest.mark.parametrize("kind", EDITING)
def test_the_values_are_those_of_the_definition(kind: Kind) -> None:
    found, moved = changed(kind), changed(kind) != VALUES
    key = {"sub_value_top_k": VALUES, "add_value_least_k": -VALUES}.get(kind, VALUES.abs())
    if kind.endswith("_k"):
        assert all(set(moved[i].nonzero()[:, 0].tolist()) == set(key[i].topk(7).indices.tolist()) for i in range(N))
    if kind.startswith("zero"):
        assert (found[moved] == 0).all()
    if kind.startswith("flip"):
        assert torch.equal(found[moved], -VALUES[moved])
    if "value" in kind:
        torch.testing.assert_close(found[moved], VALUES[moved] + (3.0 if kind.startswith("add") else -3.0))
    if kind == "set_rand_noise_first_n":
        torch.testing.assert_close(found[:, :7], 3.0 * noise(KEYS, 7))
    if kind == "rand_noise_top_k":
        assert torch.equal(found, VALUES + 3.0 * (noise(KEYS, D) * moved))  # bit for bit, in however few passes
    if kind.startswith("rand_noise"):
        drawn = (found - VALUES)[moved] / 3.0
        assert abs(float(drawn.mean())) < 0.15
        assert 0.85 < float(drawn.std()) < 1.15


def test_random_coordinates_are_one_draw_for_each_prompt_and_differ_between_prompts() -> None:
    moved_ND = changed("rand_noise_rand_n") != VALUES
    places = [tuple(row.nonzero()[:, 0].tolist()) for row in moved_ND]
    assert all(places[i] == places[12 * (i // 12)] for i in range(N))
    assert len(set(places)) == 5
    counts = torch.zeros(D)
    for seed in range(400):
        counts[drawn_coordinates(mix(torch.tensor(seed)), D, 10)] += 1
    assert counts.min() > 60  # 100 expected, deviation 8.7
    assert counts.max() < 140


@pytest.mark.parametrize("kind", sorted(PERMUTING))
def test_permutations_exchange_rows_within_a_prompt_only(kind: Kind) -> None:
    found = changed(kind)
    for row in range(5):
        mine, before = found[row * 12 : row * 12 + 12], VALUES[row * 12 : row * 12 + 12]
        assert sorted(map(tuple, mine.tolist())) == sorted(map(tuple, before.tolist()))
        assert not torch.equal(mine, before)
        if kind == "reverse_order":
            assert torch.equal(mine, before.flip(0))


@pytest.mark.parametrize("dims", [1, 7, None])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_corrupted_alone_as_among_others(kind: Kind, dims: int | None) -> None:
    together = changed(kind, dims)
    for row in range(5):
        mine = row == ROWS
        alone = corrupt(VALUES[mine], kind, dims, 3.0, KEYS[mine], ROWS[mine] * 0)
        assert torch.equal(alone, together[mine])
    many = corrupt(VALUES.repeat(200, 1), kind, dims, 3.0, KEYS.repeat(200), ROWS.repeat(200) + torch.arange(12000) // N * 5)
    assert torch.equal(many[-N:], together)


@pytest.mark.parametrize("kind", EDITING)
def test_half_precision_stays_half_precision(kind: Kind) -> None:
    found = changed(kind, values=VALUES.bfloat16())
    assert found.dtype == torch.bfloat16
    if kind.startswith(("zero", "flip")):
        assert ((found != VALUES.bfloat16()).sum(dim=1) == 7).all()


def test_equal_values_give_exactly_so_many_too() -> None:
    values = torch.ones(N, D)
    assert ((changed("flip_sign_top_k", values=values) != values).sum(dim=1) == 7).all()
    assert torch.equal(changed("flip_sign_top_k", values=values), changed("flip_sign_first_n", values=values))


@pytest.mark.parametrize("dims", [0, -1, D + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_count_of_coordinates_that_there_is_not_is_refused(kind: Kind, dims: int) -> None:
    with pytest.raises(ExpungeError, match=rf"dims {dims} is not between 1 and {D}"):
        changed(kind, dims)


def test_nothing_selected_is_nothing_changed() -> None:
    for kind in KINDS:
        assert corrupt(VALUES[:0], kind, 3, 1.0, KEYS[:0], ROWS[:0]).shape == (0, D)


def test_noise_is_normal_and_that_of_its_key() -> None:
    draws = noise(mix(torch.arange(2000)), 64)
    assert abs(float(draws.mean())) < 0.01
    assert abs(float(draws.std()) - 1) < 0.01
    assert torch.equal(noise(mix(torch.arange(1990, 2000)), 64), draws[-10:])
    assert abs(float(torch.corrcoef(draws[:2])[0, 1])) < 0.5
    state = torch.random.get_rng_state()
    noise(KEYS, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    bits = mix(torch.arange(20000))
    assert 0 <= float(uniform(bits).min()) < 0.001 < 0.999 < float(uniform(bits).max()) < 1
