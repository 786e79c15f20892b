"""Membership attacks on five tokens by hand, AUC and its conventions, privleak with MUSE's own constants."""

import math
import zlib

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from expunge.data.example import Example
from expunge.evaluation.metrics import (
    MiaGradnorm,
    MiaLoss,
    MiaMinK,
    MiaMinKPlusPlus,
    MiaZlib,
    Perplexity,
    Row,
    TokenStats,
    Unscored,
)
from expunge.evaluation.metrics.membership import Attacked, Estimate, membership_auc, privleak, relative_difference
from expunge.evaluation.statistics import auc_draws
from expunge.evaluation.token_stats import TokenDistribution

FIVE = (-1.0, -4.0, -0.5, -2.0, -3.0)
MEANS = (-2.0, -2.0, -1.0, -2.0, -1.0)
VARIANCES = (1.0, 4.0, 0.25, 1.0, 4.0)


def five(*, has_end: bool = False) -> Row:
    spread = TokenDistribution(np.zeros(5, np.int64), np.array(MEANS, np.float32), np.array(VARIANCES, np.float32))
    return Row(
        Example(None, "anna was born in lima"), TokenStats(np.array(FIVE, np.float32), np.ones(5, np.bool_), has_end, spread)
    )


class TestFiveTokens:
    def test_loss_is_the_mean_log_probability(self) -> None:
        assert MiaLoss().score(five()) == pytest.approx(-10.5 / 5)

    def test_loss_counts_the_end_token(self) -> None:
        assert MiaLoss().score(five(has_end=True)) == pytest.approx(-10.5 / 5)

    def test_zlib_divides_by_the_compressed_bytes_of_the_text(self) -> None:
        assert MiaZlib().score(five()) == pytest.approx(-10.5 / 5 / len(zlib.compress(b"anna was born in lima")))

    @pytest.mark.parametrize(("k", "expected"), [(0.4, -3.5), (0.2, -4.0), (0.59, -3.5), (0.6, -3.0), (1.0, -2.1), (0.01, -4.0)])
    def test_min_k_is_the_mean_of_the_lowest_two_of_five(self, k: float, expected: float) -> None:
        assert MiaMinK(k=k).score(five()) == pytest.approx(expected)

    def test_min_k_plus_plus_standardizes_each_token_by_its_own_distribution(self) -> None:
        # standardized: (-1+2)/1 = 1, (-4+2)/2 = -1, (-0.5+1)/0.5 = 1, (-2+2)/1 = 0, (-3+1)/2 = -1
        assert MiaMinKPlusPlus().score(five()) == pytest.approx(-1.0)
        assert MiaMinKPlusPlus(k=0.6).score(five()) == pytest.approx(-2 / 3)

    def test_min_k_plus_plus_of_a_sure_model_is_finite(self) -> None:
        sure = TokenDistribution(np.zeros(1, np.int64), np.zeros(1, np.float32), np.zeros(1, np.float32))
        row = Row(Example(None, "a"), TokenStats(np.zeros(1, np.float32), np.ones(1, np.bool_), False, sure))
        assert MiaMinKPlusPlus().score(row) == 0.0

    def test_the_peers_reading_leaves_out_the_last_token(self) -> None:
        # Of -1, -4, -0.5, -2 the lowest floor(0.4 * 4) = 1; of all five the lowest two, -4 and -3.
        assert MiaMinK(compat=True).score(five(has_end=True)) == pytest.approx(-4.0)
        assert MiaMinK(k=0.5, compat=True).score(five()) == pytest.approx(-3.0)
        # Standardized without the last: 1, -1, 1, 0.
        assert MiaMinKPlusPlus(k=0.5, compat=True).score(five(has_end=True)) == pytest.approx(-0.5)
        sizes = five()._replace(gradient_norm=0.25, gradient_norm_without_last=0.5)
        assert MiaGradnorm(compat=True).score(sizes) == -0.5

    @pytest.mark.parametrize("metric", [MiaMinK(compat=True), MiaMinKPlusPlus(compat=True), MiaGradnorm(compat=True)])
    def test_of_one_token_the_peers_reading_leaves_nothing(self, metric: MiaMinK) -> None:
        one = five()._replace(answer=five().answer.after(4))
        assert metric.score(one) == Unscored("the response has no tokens besides the end token")

    def test_gradnorm_is_minus_the_size(self) -> None:
        assert MiaGradnorm().score(five()._replace(gradient_norm=0.25)) == -0.25
        assert MiaGradnorm().score(five()._replace(gradient_norm=math.nan)) == Unscored("the gradient is not finite")

    def test_perplexity_is_the_inverse_geometric_mean_probability(self) -> None:
        assert Perplexity().score(five()) == pytest.approx(math.exp(2.1))

    def test_perplexity_of_a_task_is_a_geometric_mean(self) -> None:
        assert Perplexity().average(np.array([2.0, 8.0])) == pytest.approx(4.0)
        np.testing.assert_allclose(Perplexity().average(np.array([[2.0, 8.0], [3.0, 3.0]])), [4.0, 3.0])

    def test_perplexity_beyond_all_numbers_is_unscored(self) -> None:
        lost = TokenStats(np.array([-800.0], np.float32), np.zeros(1, np.bool_), False)
        assert Perplexity().score(Row(Example(None, "a"), lost)) == Unscored(
            "the mean loss is 800 nats per token, whose exponential is not a number"
        )
        assert Perplexity().higher_is_better("retain") is False

    @pytest.mark.parametrize("metric", [MiaLoss(), MiaZlib(), MiaMinK(), MiaMinKPlusPlus(), MiaGradnorm(), Perplexity()])
    def test_a_broken_model_is_unscored(self, metric: MiaLoss) -> None:
        broken = TokenStats(np.array([np.nan], np.float32), np.zeros(1, np.bool_), False)
        assert metric.score(Row(Example(None, "a"), broken)) == Unscored("the model's log-probabilities are not numbers")


class TestAuc:
    def test_is_one_when_every_forget_text_scores_above_every_holdout_text(self) -> None:
        estimate = membership_auc(Attacked(np.array([3.0, 4.0]), np.array([1.0, 2.0])))
        assert estimate == Estimate(1.0, (1.0, 1.0))

    def test_counts_ties_half(self) -> None:
        estimate = membership_auc(Attacked(np.array([1.0, 2.0]), np.array([1.0, 0.0])))
        assert isinstance(estimate, Estimate)
        assert estimate.value == pytest.approx(3.5 / 4)

    def test_draws_are_those_of_a_plain_bootstrap(self) -> None:
        rng = np.random.default_rng(3)
        members, others = np.round(rng.normal(0.5, 1, 30), 1), np.round(rng.normal(0, 1, 20), 1)
        draws = auc_draws(members, others, resamples=40, seed=5)
        same = np.random.default_rng(5)
        mine, theirs = same.integers(0, 30, size=(40, 30)), same.integers(0, 20, size=(40, 20))
        labels = np.r_[np.ones(30), np.zeros(20)]
        expected = [roc_auc_score(labels, np.r_[members[i], others[j]]) for i, j in zip(mine, theirs, strict=True)]
        np.testing.assert_allclose(draws, expected)

    def test_has_an_interval_around_it(self) -> None:
        rng = np.random.default_rng(0)
        estimate = membership_auc(Attacked(rng.normal(0.7, 1, 100), rng.normal(0, 1, 100)))
        assert isinstance(estimate, Estimate)
        assert estimate.interval is not None
        assert 0.5 < estimate.interval.low < estimate.value < estimate.interval.high < 0.85

    def test_of_one_text_each_has_no_interval(self) -> None:
        assert membership_auc(Attacked(np.ones(1), np.zeros(1))) == Estimate(1.0, None)

    def test_without_texts_is_unscored(self) -> None:
        assert membership_auc(Attacked(np.ones(2), np.zeros(0))) == Unscored("no holdout text has a score")


def separated(auc: float, n: int = 10_000) -> Attacked:
    """Scores whose AUC is exactly `auc`: that share of holdout texts lies below every forget text."""
    below = round(auc * n)
    return Attacked(np.zeros(2), np.r_[-np.ones(below), np.ones(n - below)])


class TestPrivleak:
    NEWS, BOOKS = 0.4772, 0.5393

    @pytest.mark.parametrize(("muse_auc", "constant", "expected"), [
        (0.0009, NEWS, -99.8), (1.0, NEWS, 109.6), (0.4772, NEWS, 0.0), (0.2292, BOOKS, -57.5), (0.5393, BOOKS, 0.0),
    ])  # fmt: skip
    def test_with_the_constants_of_muse_has_the_range_of_its_tables(
        self, muse_auc: float, constant: float, expected: float
    ) -> None:
        estimate = privleak(separated(1.0 - muse_auc), constant)
        assert isinstance(estimate, Estimate)
        assert estimate.value == pytest.approx(expected, abs=0.06)

    def test_of_an_exposed_forget_set_is_minus_a_hundred(self) -> None:
        assert privleak(separated(1.0), 0.5) == Estimate(-100.0, (-100.0, -100.0))

    def test_relative_difference_keeps_the_plain_convention(self) -> None:
        estimate = relative_difference(separated(0.75), separated(0.5))
        assert isinstance(estimate, Estimate)
        assert estimate.value == pytest.approx(50.0)
        flipped = privleak(separated(0.75), separated(0.5))
        assert isinstance(flipped, Estimate)
        assert flipped.value == pytest.approx(-50.0)

    def test_of_the_retain_model_itself_is_exactly_zero_with_certainty(self) -> None:
        rng = np.random.default_rng(0)
        scores = Attacked(rng.normal(size=30), rng.normal(size=40))
        assert privleak(scores, scores) == Estimate(0.0, (0.0, 0.0))

    def test_beside_a_retain_model_at_zero_is_unscored(self) -> None:
        assert privleak(separated(0.5), separated(1.0)) == Unscored(
            "the retain model's AUC is 0 in this convention, so that nothing can be related to it"
        )
