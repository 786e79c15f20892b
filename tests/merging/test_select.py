"""The k-th largest magnitude, against a sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.merging import select
from expunge.merging.select import RankedMagnitude, Search, magnitude_bits, select_small, ties_to_place
from expunge.methods.editing.base import Band


def bits_of(seed: int, size: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size).astype(np.float32) * np.float32(1e-3)
    if kind == "coarse":
        values = np.round(values * 2048) / np.float32(2048)  # ties, and many zeros
    if kind == "heavy":
        values = (values / np.float32(1e-3)) ** 9 * np.float32(1e-20)  # magnitudes over many octaves, subnormal ones too
    return magnitude_bits(values.astype(np.float32))


def sorted_answer(bits: np.ndarray, rank: int) -> RankedMagnitude:
    if rank >= len(bits):
        return RankedMagnitude(0, len(bits), 0)
    value = int(np.sort(bits)[::-1][rank])
    return RankedMagnitude(value, int((bits > value).sum()), int((bits == value).sum()))


def search(bits: np.ndarray, rank: int, sample: np.ndarray) -> tuple[RankedMagnitude, int]:
    """In pieces of 97; also the number of passes."""
    wanted, passes = Search(rank, len(bits), sample), 0
    while wanted.found is None:
        for start in range(0, len(bits), 97):
            wanted.count(bits[start : start + 97].copy())
        wanted.narrow()
        passes += 1
    return wanted.found, passes


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(1, 2000),
    kind=st.sampled_from(["fine", "coarse", "heavy"]),
    share=st.floats(0, 1.2),
)
def test_every_way_finds_what_a_sort_finds(seed: int, size: int, kind: str, share: float) -> None:
    bits = bits_of(seed, size, kind)
    rank = int(share * size)
    expected = sorted_answer(bits, rank)
    assert select_small(bits, rank) == expected
    assert search(bits, rank, bits[:: max(1, size // 50)])[0] == expected


@pytest.mark.parametrize("kind", ["fine", "coarse", "heavy"])
@pytest.mark.parametrize("rank", [0, 1, 5000, 19_999])
def test_a_sample_that_misleads_costs_passes_and_no_exactness(kind: str, rank: int) -> None:
    bits = bits_of(1, 20_000, kind)
    for sample in (np.zeros(100, np.uint32), np.full(100, 2**31 - 1, np.uint32), bits[:3]):
        found, passes = search(bits, rank, sample)
        assert found == sorted_answer(bits, rank)
        assert passes <= 3


def test_a_fair_sample_takes_one_pass() -> None:
    bits = bits_of(2, 400_000, "fine")
    assert search(bits, 80_000, bits[::6])[1] == 1


def test_memory_is_one_histogram_whatever_the_window() -> None:
    wide = Search(10, 1000, np.array([0, 2**31 - 1], np.uint32))
    assert len(wide.bins) <= select.BINS


def test_ranks_beyond_the_entries_read_are_the_zeros_that_equal_the_base() -> None:
    wanted = Search(20, 20, np.zeros(1, np.uint32))
    assert wanted.found == RankedMagnitude(0, 20, 0)
    assert wanted.found.magnitude == 0.0


def test_ties_are_placed_only_where_they_are_split() -> None:
    assert ties_to_place(Band(0, 5), (RankedMagnitude(9, above=3, equal=2),)) == (None, 0)
    assert ties_to_place(Band(0, 5), (RankedMagnitude(9, above=3, equal=4),)) == (2, 0)
    assert ties_to_place(Band(2, 5), (RankedMagnitude(9, above=3, equal=9), RankedMagnitude(11, above=1, equal=2))) == (4, 1)
    assert ties_to_place(Band(0, 5), (RankedMagnitude(0, above=3, equal=0),)) == (None, 0)
