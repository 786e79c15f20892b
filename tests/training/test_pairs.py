"""What a step sees depends on the seed and the step alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import ExpungeError
from expunge.training.pairs import Pairs, share

COUNTS = st.integers(1, 40)
pairs = st.builds(
    Pairs,
    forget=COUNTS,
    retain=COUNTS,
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)


def refusal_rows(p: Pairs, step: int, available: int) -> list[int]:
    """One of `available` refusals for each forget row of a step."""
    return [answer for (answer,) in p.answers(step, "forget", "refusals", available, [()] * len(p.forget_rows(step)))]


def stream(rows, steps: int) -> list[int]:
    return [row for step in range(steps) for row in rows(step)]


@given(pairs)
@settings(deadline=None)
def test_every_epoch_visits_each_row_once_in_both_sets(p: Pairs):
    for rows, count in ((p.forget_rows, p.forget), (p.retain_rows, p.retain)):
        walked = stream(rows, -(-3 * count // min(p.batch_size, count)))
        for epoch in range(3):
            assert sorted(walked[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(pairs, st.sampled_from([1, 2, 3, 4]), st.integers(0, 50))
@settings(deadline=None)
def test_processes_share_out_the_batch_and_nothing_twice(p: Pairs, world: int, step: int):
    batch = p.forget_rows(step)
    if len(batch) % world:
        with pytest.raises(ExpungeError, match=f"multiple of {world}"):
            share(batch, 0, world)
        return
    shares = [share(batch, rank, world) for rank in range(world)]
    assert {len(s) for s in shares} == {len(batch) // world}
    assert [row for place in zip(*shares, strict=True) for row in place] == batch


@given(pairs, st.integers(0, 10_000))
@settings(deadline=None)
def test_a_step_is_the_same_whether_reached_or_jumped_to(p: Pairs, step: int):
    fresh = Pairs(p.forget, p.retain, p.batch_size, p.seed)
    early = [(p.forget_rows(s), p.retain_rows(s), refusal_rows(p, s, 7)) for s in range(4)]
    late = (p.forget_rows(step), p.retain_rows(step), refusal_rows(p, step, 7))
    assert (fresh.forget_rows(step), fresh.retain_rows(step), refusal_rows(fresh, step, 7)) == late
    assert [(fresh.forget_rows(s), fresh.retain_rows(s), refusal_rows(fresh, s, 7)) for s in range(4)] == early


@given(pairs, st.integers(0, 50))
@settings(deadline=None)
def test_a_set_smaller_than_the_batch_is_in_each_step_once(p: Pairs, step: int):
    for rows, count in ((p.forget_rows(step), p.forget), (p.retain_rows(step), p.retain)):
        assert len(rows) == min(p.batch_size, count)
        if count <= p.batch_size:
            assert sorted(rows) == list(range(count))


def test_a_step_that_processes_cannot_share_is_refused():
    Pairs(forget=3, retain=8, batch_size=2, seed=0).check_shares(2)
    with pytest.raises(ExpungeError, match="a batch of 3 rows cannot be shared evenly by 2 processes"):
        Pairs(forget=3, retain=8, batch_size=4, seed=0).check_shares(2)


def test_numpys_global_seed_and_other_draws_change_nothing():
    p = Pairs(forget=50, retain=70, batch_size=8, seed=3)
    np.random.seed(0)
    first = p.retain_rows(2)
    np.random.seed(1)
    np.random.rand(17)
    assert p.retain_rows(2) == first


def test_the_order_is_pinned_for_all_versions():
    p = Pairs(forget=6, retain=5, batch_size=4, seed=7)
    assert (p.forget_rows(0), p.retain_rows(1), refusal_rows(p, 2, 100)) == ([4, 3, 2, 1], [0, 1, 3, 4], [41, 41, 20, 89])


def test_ranks_draw_different_retain_rows():
    p = Pairs(forget=400, retain=3600, batch_size=32, seed=0)
    for step in range(20):
        left, right = (set(share(p.retain_rows(step), rank, 2)) for rank in range(2))
        assert len(left) == len(right) == 16
        # Step 112 is the first that crosses an epoch of 3600 rows, so no row can come twice here.
        assert not left & right


def test_epochs_seeds_and_sets_have_orders_of_their_own():
    p = Pairs(forget=64, retain=64, batch_size=64, seed=0)
    orders = [p.forget_rows(0), p.forget_rows(1), p.retain_rows(0), Pairs(64, 64, 64, seed=1).forget_rows(0), list(range(64))]
    assert len({tuple(order) for order in orders}) == 5


def test_pairings_change_from_epoch_to_epoch():
    p = Pairs(forget=16, retain=16, batch_size=16, seed=0)
    paired = [set(zip(p.forget_rows(s), p.retain_rows(s), strict=True)) for s in range(2)]
    assert paired[0] != paired[1]


def test_refusals_are_drawn_evenly_and_anew_each_step():
    p = Pairs(forget=10, retain=0, batch_size=10, seed=0)
    drawn = stream(lambda step: refusal_rows(p, step, 5), 200)
    counts = np.bincount(drawn, minlength=5)
    assert len(counts) == 5
    assert abs(counts - 400).max() < 80
    assert refusal_rows(p, 0, 5) != refusal_rows(p, 1, 5)


def test_without_a_retain_set_there_are_no_retain_rows():
    p = Pairs(forget=3, retain=0, batch_size=2, seed=0)
    assert p.retain_rows(0) == []


@given(st.integers(0, 1000), st.integers(1, 4), st.sets(st.integers(0, 11), max_size=8))
@settings(deadline=None)
def test_answers_of_a_row_differ_and_none_is_barred(step: int, count: int, barred: set[int]):
    p = Pairs(forget=10, retain=10, batch_size=3, seed=1)
    for answers in p.answers(step, "forget", "forget", 12, [barred] * 3, count):
        assert len(set(answers)) == count
        assert not barred & set(answers)
        assert all(0 <= answer < 12 for answer in answers)


def test_answers_that_are_not_barred_are_drawn_evenly():
    p = Pairs(forget=10, retain=0, batch_size=10, seed=0)
    drawn = [a for step in range(200) for row in p.answers(step, "forget", "forget", 8, [{2, 5}] * 10, 2) for a in row]
    counts = np.bincount(drawn, minlength=8)
    assert counts[2] == counts[5] == 0
    assert abs(counts[[0, 1, 3, 4, 6, 7]] - 4000 / 6).max() < 120


@pytest.mark.parametrize(
    ("forget", "batch", "epochs", "steps"), [(40, 8, 5, 25), (41, 8, 1, 6), (40, 8, 0.5, 3), (3, 8, 1, 1), (10, 1, 0.3, 3)]
)
def test_total_steps_cover_the_epochs(forget: int, batch: int, epochs: float, steps: int):
    assert Pairs(forget, 1, batch, 0).total_steps(epochs) == steps


@pytest.mark.parametrize("bad", [{"forget": 0}, {"batch_size": 0}, {"seed": -1}, {"retain": -1}])
def test_impossible_sizes_are_refused_by_name(bad: dict[str, int]):
    with pytest.raises(ExpungeError, match=f"{next(iter(bad))} is {next(iter(bad.values()))}"):
        Pairs(**{"forget": 1, "retain": 1, "batch_size": 1, "seed": 0} | bad)


class TestParts:
    """Parts of the forget set that are not mixed in a step."""

    PARTS = ((0, 2, 4, 6, 8), (1, 3, 5))

    def test_steps_take_the_parts_in_turn_and_see_each_row_once_an_epoch(self) -> None:
        plan = Pairs(9, 0, 1, 7, parts=self.PARTS)
        rows = [plan.forget_rows(step)[0] for step in range(10)]
        assert sorted(rows[0::2]) == [0, 2, 4, 6, 8]
        assert sorted(rows[1:6:2]) == [1, 3, 5]
        assert rows[0::2] != [0, 2, 4, 6, 8] or rows[1:6:2] != [1, 3, 5]

    def test_the_longest_part_decides_how_long_an_epoch_is(self) -> None:
        assert Pairs(8, 0, 2, 0, parts=self.PARTS).total_steps(1) == 6
        assert Pairs(8, 0, 2, 0, parts=(tuple(range(8)),)).total_steps(2) == Pairs(8, 0, 2, 0).total_steps(2)

    def test_a_part_without_rows_is_refused(self) -> None:
        with pytest.raises(ExpungeError, match="part 2 of the forget set has no rows"):
            Pairs(8, 0, 2, 0, parts=((0, 1), ()))
