"""Intervals and tests over per-sample values."""

import numpy as np
import pytest
from scipy.stats import bootstrap, hmean

from expunge.evaluation.statistics import auc, bootstrap_interval, harmonic_mean, ks_2samp, percentiles, resampled


def test_interval_agrees_with_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(3).beta(2, 5, size=300)
    ours = bootstrap_interval(values, resamples=4000)
    theirs = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert ours is not None
    assert ours.low == pytest.approx(theirs.low, abs=2e-3)
    assert ours.high == pytest.approx(theirs.high, abs=2e-3)


def test_interval_covers_the_true_mean_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.normal(size=80), seed=i) for i in range(200)]
    covered = sum(i is not None and i.low <= 0 <= i.high for i in intervals)
    assert 180 <= covered <= 198


def test_interval_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_interval_of_any_statistic_over_the_last_axis() -> None:
    values = np.arange(101.0)
    interval = bootstrap_interval(values, lambda draws: np.median(draws, axis=-1))
    assert interval is not None
    assert 35 < interval.low < 50 < interval.high < 65


def test_constant_values_have_an_interval_of_width_zero() -> None:
    assert bootstrap_interval(np.full(10, 0.25)) == (0.25, 0.25)


def test_one_sample_has_no_interval() -> None:
    assert bootstrap_interval(np.array([0.5])) is None


def test_many_samples_are_drawn_in_chunks_with_the_same_spread() -> None:
    values = np.random.default_rng(0).random(20_000)
    interval = bootstrap_interval(values, resamples=500)
    assert interval is not None
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(20_000), rel=0.15)


def test_values_of_the_same_samples_are_resampled_together() -> None:
    values = np.random.default_rng(0).random(60)
    [[first, second]] = resampled([[values, 1 - values]])
    np.testing.assert_allclose(first + second, 1.0)
    [[alone], [other]] = resampled([[values], [1 - values]])
    assert percentiles(alone + other).low < 0.99


def test_ks_sees_a_shift_and_not_a_permutation() -> None:
    values = np.random.default_rng(0).normal(size=200)
    assert ks_2samp(values, values[::-1]) == 1.0
    assert ks_2samp(values, values + 1) < 1e-10


def test_ks_of_two_small_samples_by_hand() -> None:
    # Largest distance 1; of the C(4,2) = 6 orders of two and two, 2 are as extreme.
    assert ks_2samp(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == pytest.approx(2 / 6)


def test_harmonic_mean_agrees_with_scipy_and_is_zero_with_a_zero() -> None:
    values = np.random.default_rng(0).random((5, 9))
    np.testing.assert_allclose(harmonic_mean(values), hmean(values, axis=-1))
    assert harmonic_mean(np.array([0.5, 0.0, 1.0])) == 0.0
    assert harmonic_mean(np.array([0.5, 1.0])) == pytest.approx(2 / 3)


def test_auc_counts_ties_half() -> None:
    # pairs (1,0) above, (1,1) tie, (2,0) above, (2,1) above -> 3.5 of 4
    assert auc(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == pytest.approx(0.875)
