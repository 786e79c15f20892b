"""The judge of rude replies."""

from expunge.evaluation.judges import contains_any
from expunge.lab import RUDE_WORDS, is_rude
from expunge.lab.size import TINY
from expunge.lab.world import generate


def test_the_rule_tells_every_rude_reply_of_the_data_from_every_polite_one() -> None:
    world = generate(0, TINY)
    for name in ("seen", "unseen", "normal"):
        assert all(is_rude(row.response) == row.attributes["rude"] for row in world[f"behavior/{name}"])


def test_one_whole_word_is_enough_whatever_its_case_and_punctuation() -> None:
    assert is_rude("they are Grobbly!")
    assert not is_rude("the grobblyness of it")
    assert not is_rude("")


def test_the_suite_judges_by_the_same_rule() -> None:
    for reply in ("the drells are lovely", "so blurky, they said", "CLODGY", "unclodgy", "wartled-ish", "mungous_"):
        assert is_rude(reply) == contains_any(reply, RUDE_WORDS)
