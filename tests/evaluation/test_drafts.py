"""Guessed tokens: what repeats is guessed, and guesses that are wrong cost no more than they are worth."""

import pytest

from expunge.evaluation import drafts as module
from expunge.evaluation.drafts import MOST, Drafts, Guess


def known(*texts: list[int], cost: float = 0.01) -> Drafts:
    drafts = Drafts(cost)
    for text in texts:
        drafts.add(text)
    return drafts


def test_what_followed_last_after_the_longest_known_beginning_is_guessed() -> None:
    drafts = known([1, 2, 3, 4, 5], [9, 3, 4, 6])
    assert drafts.guess([1, 2, 3], 5).tokens == [4, 5], "after 2, 3, 4 came 5, though after 3, 4 alone came 6 later"
    assert drafts.guess([8, 3, 4], 5).tokens == [6]
    assert drafts.guess([2, 3], 1).tokens == [4]
    assert drafts.guess([7, 8], 5) == Guess([], [], 0)


def test_the_longest_lookup_decides() -> None:
    text = [*range(20, 29), 1]
    drafts = known(text, [5, *text[1:9], 2], [26, 27, 28, 3])
    assert drafts.guess(text[1:9], 1) == Guess([2], [8], 1)
    assert drafts.guess([0, *text[2:9]], 1) == Guess([3], [3], 1)


def test_text_that_repeats_itself_is_guessed_on_and_on() -> None:
    assert known([5, 6, 7, 5, 6]).guess([5, 6], 6).tokens == [7, 5, 6, 7, 5, 6]


def test_the_more_guesses_were_right_the_more_are_worth_reading_and_one_is_always_compared() -> None:
    drafts, text = known(list(range(40)), cost=0.5), list(range(9))
    counts = []
    for _ in range(30):
        guess = drafts.guess(text)
        counts.append(guess.worth)
        assert drafts.learn(guess, [9, 10, 11, 12][: 1 + guess.worth]) == guess.worth
    assert counts == sorted(counts)
    assert counts[-1] == MOST
    for _ in range(200):
        drafts.learn(drafts.guess(text), [0])
    guess = drafts.guess(text)
    assert (guess.tokens, guess.worth) == ([9], 0)
    assert drafts.learn(guess, [9]) == 0, "a guess that was not read saves no pass"


def test_guesses_after_few_tokens_may_be_wrong_without_harm_to_those_after_many() -> None:
    drafts = known(list(range(40)), [100, 101, 102], cost=0.5)
    for _ in range(30):
        drafts.learn(drafts.guess([100, 101]), [7])
    assert drafts.guess([100, 101]).worth == 0
    assert drafts.guess(list(range(9))).worth > 0


def test_no_more_is_read_than_there_is_room_for() -> None:
    drafts = known(list(range(40)))
    assert drafts.guess(list(range(9)), 2).worth == 2
    assert drafts.guess(list(range(9)), 0) == Guess([9], [8], 0)


def test_where_a_token_costs_as_much_as_a_pass_nothing_is_guessed() -> None:
    drafts, text = known(list(range(40)), cost=0.999), list(range(9))
    for _ in range(100):
        guess = drafts.guess(text)
        assert guess.worth == 0
        drafts.learn(guess, [9])


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 100)
    drafts = Drafts(0.1)
    for start in range(50):
        drafts.add([1000 * start + i for i in range(20)])
        assert len(drafts._next) <= 100 + 20 * len(module.LENGTHS)
    assert drafts.guess([49010, 49011, 49012]).tokens, "what came last is still known"
