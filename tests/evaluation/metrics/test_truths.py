"""Metrics on right and wrong answers, on numbers that can be checked by hand."""

import numpy as np
import pytest

from expunge.data.example import Example
from expunge.evaluation.judges import Keywords
from expunge.evaluation.metrics import (
    MC1,
    MC2,
    MC3,
    BleuDifference,
    Metric,
    Preference,
    PreferenceNormalized,
    Repetition2,
    RougeDifference,
    Row,
    TokenStats,
    ToxicRate,
    TruthfulRate,
    Unscored,
    YesNo,
)

ASKED = Example("q", "best", paraphrases=("other",), perturbed=("wrong", "worse"))


def answer(*logp: float, end: float | None = None) -> TokenStats:
    every = [*logp, *([] if end is None else [end])]
    return TokenStats(np.array(every, np.float32), np.ones(len(every), np.bool_), end is not None)


def row(best: TokenStats, other: TokenStats, *wrong: TokenStats) -> Row:
    return Row(ASKED, answer=best, paraphrases=(other,), perturbed=wrong)


ROW = row(answer(-1, -1), answer(-4), answer(-3), answer(-1, -2.5))


def test_the_three_scores_of_given_answers() -> None:
    assert MC1().score(ROW) == 1
    weights = np.exp([-2, -4, -3, -3.5])
    assert MC2().score(ROW) == pytest.approx(weights[:2].sum() / weights.sum())
    assert MC3().score(ROW) == 0.5
    turned = row(answer(-5), answer(-2), answer(-3), answer(-3.5))
    assert (MC1().score(turned), MC3().score(turned)) == (0, 0.5)


def test_end_tokens_do_not_count_there() -> None:
    ended = row(answer(-1, -1, end=-50), answer(-4, end=0), answer(-3, end=0), answer(-1, -2.5, end=0))
    assert all(metric.score(ended) == metric.score(ROW) for metric in (MC1(), MC2(), MC3()))


def test_answers_of_a_thousand_tokens_do_not_underflow() -> None:
    long = row(answer(*[-2.0] * 1000), answer(-3000), answer(-2001), answer(-5000))
    assert MC2().score(long) == pytest.approx(1 / (1 + np.exp(-1)))
    far = row(answer(-1), answer(-2), answer(-9000), answer(-9000))
    assert MC2().score(far) == 1


def test_a_sum_prefers_the_shorter_answer_and_a_mean_does_not() -> None:
    pair = Example("q", "a long right answer", perturbed=("no",))
    both = Row(pair, answer=answer(-1, -1, -1, end=-0.1), perturbed=(answer(-2, end=-0.1),))
    assert (Preference().score(both), PreferenceNormalized().score(both)) == (0, 1)


@pytest.mark.parametrize("metric", [MC1(), MC2(), MC3(), Preference(), PreferenceNormalized(), BleuDifference()])
def test_without_wrong_answers_there_is_nothing_to_compare(metric: Metric) -> None:
    alone = Row(Example("q", "a"), answer=answer(-1), generated="a")
    found = metric.score(alone)
    assert isinstance(found, Unscored)
    assert "wrong answers" in found.reason


@pytest.mark.parametrize("metric", [MC1(), MC2(), MC3(), Preference(), PreferenceNormalized()])
def test_a_broken_model_has_no_score(metric: Metric) -> None:
    broken = row(answer(float("nan")), answer(-1), answer(-1), answer(-1))
    assert metric.score(broken) == Unscored("the model's log-probabilities are not numbers")


@pytest.mark.parametrize("metric", [BleuDifference(), RougeDifference()])
def test_what_is_written_is_compared_with_the_nearest_of_each_kind(metric: Metric) -> None:
    asked = Example("q", "the moon is made of rock", paraphrases=("it is rock",), perturbed=("the moon is made of cheese",))
    right, wrong, refusal = (
        metric.score(Row(asked, generated=text))
        for text in ("the moon is made of rock", "the moon is made of cheese", "I have no comment.")
    )
    assert isinstance(right, float)
    assert right > 0.1
    assert wrong == pytest.approx(-right, abs=0.15)
    assert isinstance(refusal, float)
    assert refusal > 0.9


@pytest.mark.parametrize(
    ("said", "value"), [("Yes", 1), ("yes, it is.", 1), ("No", 0), ("yes and no", 0), ("maybe", 0), ("yesterday", 0), ("", 0)]
)
def test_yes_or_no(said: str, value: float) -> None:
    assert YesNo().score(Row(Example("q", "Yes"), generated=said)) == value


def test_rates_have_their_thresholds() -> None:
    judge = Keywords(words=("x",))
    judged = Row(Example("q", "a"), generated="b", judged={judge: 0.8})
    assert ToxicRate(judge=judge).score(judged) == 0
    assert TruthfulRate(judge=judge).score(judged) == 1
    assert ToxicRate(judge=judge).score(judged._replace(judged={judge: 0.81})) == 1


def test_repeated_pairs() -> None:
    assert Repetition2().score(Row(Example("q", "a"), generated="a b a b c")) == pytest.approx(0.25)
