"""Questions as prompts: lm-eval's text, character by character."""

import pytest

from expunge.data.example import Example
from expunge.data.questions import continued, lettered
from expunge.errors import ExpungeError

QUESTION = Example(" What is red? ", "fire", ("sky", "fire", "grass", "snow"), 1)
SHOT = Example("What is blue?", "sky", ("sky", "coal"), 0)


def test_letters_are_compared_behind_the_header_and_the_lettered_choices() -> None:
    asked = lettered(QUESTION, "About colors.")
    assert asked.prompt == "About colors.\n\nWhat is red?\nA. sky\nB. fire\nC. grass\nD. snow\nAnswer:"
    assert (asked.choices, asked.response, asked.answer) == ((" A", " B", " C", " D"), " B", 1)


def test_shots_stand_between_the_header_and_the_question_with_their_answers() -> None:
    prompt = lettered(QUESTION, "About colors.", [SHOT]).prompt or ""
    assert prompt.startswith("About colors.\n\nWhat is blue?\nA. sky\nB. coal\nAnswer: A\n\nWhat is red?\nA. sky")


def test_continuations_are_compared_without_being_shown() -> None:
    asked = continued(QUESTION, shots=[SHOT])
    assert asked.prompt == "Question: What is blue?\nAnswer: sky\n\nQuestion:  What is red? \nAnswer:"
    assert (asked.choices, asked.response) == ((" sky", " fire", " grass", " snow"), " fire")


def test_five_choices_have_five_letters() -> None:
    assert lettered(Example("q", "e", tuple("abcde"), 4)).response == " E"


@pytest.mark.parametrize("render", [lettered, continued])
def test_an_example_without_choices_is_refused(render: type) -> None:
    with pytest.raises(ExpungeError, match="no question with choices"):
        render(Example("q", "a"))
