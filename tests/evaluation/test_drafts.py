"""Guessed tokens: what repeats is guessed, and guesses that are wrong cost no more than they are worth."""

from expunge.evaluation.drafts import MOST, Drafts, Trust


def test_what_followed_last_after_the_longest_known_beginning_is_guessed() -> None:
    drafts = Drafts()
    drafts.add([1, 2, 3, 4, 5])
    drafts.add([9, 3, 4, 6])
    assert drafts.guess([1, 2, 3], 5) == [4, 5], "after 2, 3, 4 came 5, though after 3, 4 alone came 6 later"
    assert drafts.guess([8, 3, 4], 5) == [6]
    assert drafts.guess([2, 3], 1) == [4]
    assert drafts.guess([7, 8], 5) == []


def test_text_that_repeats_itself_is_guessed_on_and_on() -> None:
    drafts = Drafts()
    drafts.add([5, 6, 7, 5, 6])
    assert drafts.guess([5, 6], 6) == [7, 5, 6, 7, 5, 6]


def test_the_more_guesses_were_right_the_more_are_read() -> None:
    trust = Trust(cost=0.3)
    counts = [trust.count()]
    for _ in range(8):
        trust.learn(True, 1)
        counts.append(trust.count())
    assert counts == sorted(counts)
    assert counts[-1] == MOST
    for _ in range(8):
        trust.learn(False, 0)
    assert trust.count() == 0


def test_where_a_token_costs_as_much_as_a_pass_nothing_is_guessed() -> None:
    trust = Trust(cost=0.99)
    for _ in range(100):
        trust.learn(True, 8)
    assert trust.count() == 0
