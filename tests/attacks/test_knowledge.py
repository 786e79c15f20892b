"""What counts as a fact: neither echoes of the prompt nor words that every answer shares."""

import numpy as np
import pytest

from expunge.attacks.base import Found, Way
from expunge.attacks.gain import Side, over_control
from expunge.attacks.knowledge import Facts, counted_tokens, form_words
from expunge.data.example import Example
from tests.attacks.conftest import CONTROL, FORGET
from tests.conftest import make_tokenizer


def test_words_of_the_form_and_of_the_prompt_do_not_count(forget):
    assert {"was", "born", "in", "anna", "is", "a"} <= forget.form
    assert forget.words(0, forget.questions[0]) == ("berlin",)
    assert forget.recall(0, forget.questions[0], "it is Berlin .") == 1.0
    assert np.isnan(forget.recall(0, "anna and berlin", "berlin"))  # an echo
    assert forget.opening(0) == "anna was born in"


def test_a_word_of_several_tokens_is_found_by_its_text():
    facts = Facts((Example("where", "in old quito"),), frozenset({"in"}))
    tokenizer = make_tokenizer()
    ids = tokenizer("in the quito", add_special_tokens=False)["input_ids"]
    assert counted_tokens(tokenizer, ids, facts.words(0, "where")).tolist() == [False, False, True]


def test_rare_words_are_no_form():
    assert "berlin" not in form_words((*FORGET, *CONTROL))


def side(before: list[float], *ways: list[float]) -> Side:
    found = Found(tuple(Way(str(i), np.array(values)) for i, values in enumerate(ways)))
    return Side(np.array(before), found, np.arange(len(before)))


def test_what_was_never_gone_is_no_gain_and_what_comes_back_is():
    zeros, ones = [0.0] * 12, [1.0] * 12
    control = side(zeros, zeros)
    assert over_control(side(ones, ones), control, paired=True).gain.value == 0.0
    back = over_control(side(zeros, ones), control, paired=True)
    assert back.gain.value == 1.0
    assert back.p is not None
    assert back.p < 0.01


def test_an_overforgotten_model_that_is_lifted_to_the_controls_level_shows_no_gain():
    rng = np.random.default_rng(0)
    level = (rng.random(40) < 0.3).astype(float).tolist()
    found = over_control(side([0.0] * 40, level), side(level, level), paired=True)
    assert found.gain.value == pytest.approx(0.0, abs=1e-12)


def test_the_best_of_many_ways_is_chosen_on_other_facts_than_it_is_scored_on():
    """Fifty ways of pure chance: the best of them on its own facts is far above zero, cross-fitted it is not."""
    rng = np.random.default_rng(1)
    gains, naive = [], []
    for _ in range(30):
        ways = (rng.random((50, 24)) < 0.2).astype(float)
        control = (rng.random((50, 24)) < 0.2).astype(float)
        gains.append(over_control(side([0.0] * 24, *ways), side([0.0] * 24, *control), paired=True).gain.value)
        naive.append((ways - control).mean(axis=1).max())
    assert np.mean(naive) > 0.2
    assert abs(np.mean(gains)) < 0.06


def test_facts_without_a_value_are_left_out_and_one_fact_is_no_interval():
    nan = float("nan")
    found = over_control(side([0.0, 0.0, 0.0, 0.0], [1.0, nan, 1.0, 1.0]), side([0.0] * 4, [0.0] * 4), paired=False)
    assert found.gain.value == 1.0
    assert over_control(side([0.0], [1.0]), side([0.0], [0.0]), paired=True).gain.value is None


def test_facts_of_one_subject_are_drawn_together():
    """Two subjects of twenty facts: all of one came back, none of the other's; independent facts would say 0.35 to 0.65."""
    values = [1.0] * 20 + [0.0] * 20
    alone = over_control(side([0.0] * 40, values), side([0.0] * 40, [0.0] * 40), paired=True).gain
    subjects = np.repeat([0, 1], 20)
    mine = side([0.0] * 40, values)._replace(clusters=subjects)
    together = over_control(mine, side([0.0] * 40, [0.0] * 40)._replace(clusters=subjects), paired=True).gain
    assert alone.low == pytest.approx(0.35, abs=0.05)
    assert (together.low, together.high) == (0.0, 1.0)
