"""Renders multiple-choice questions as prompts and choices to be compared.

A rendered question is an Example whose `prompt` is the whole text and whose choices have their own leading space: the model reads
prompt + choice. Both forms are those of lm-eval, so that scores are comparable.
"""

from collections.abc import Sequence
from dataclasses import replace

from expunge.data.example import Example
from expunge.errors import ExpungeError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def lettered(question: Example, header: str = "", shots: Sequence[Example] = ()) -> Example:
    """Renders in the form of MMLU and WMDP: lettered choices, and letters as answers.

        HEADER

        QUESTION
        A. CHOICE
        B. CHOICE
        C. CHOICE
        D. CHOICE
        Answer:

    header   first line, such as `The following are multiple choice questions (with answers) about biology.`
    shots    questions with their answers (` B`), each followed by a blank line
    """
    _check(question)
    letters = tuple(f" {letter}" for letter in LETTERS[: len(question.choices)])
    worked = "".join(f"{_block(shot)} {LETTERS[_check(shot)]}\n\n" for shot in shots)
    prompt = f"{header}\n\n{worked}{_block(question)}" if header else worked + _block(question)
    return replace(question, prompt=prompt, response=letters[_check(question)], choices=letters)


def continued(question: Example, header: str = "", shots: Sequence[Example] = ()) -> Example:
    """Renders in the form of ARC: the choices are not shown; each is compared as a continuation of `Question:
    QUESTION\nAnswer:`."""
    choices = tuple(f" {choice}" for choice in question.choices)
    worked = "".join(f"Question: {shot.prompt}\nAnswer: {shot.choices[_check(shot)]}\n\n" for shot in shots)
    start = f"{header}\n\n{worked}" if header else worked
    prompt = f"{start}Question: {question.prompt}\nAnswer:"
    return replace(question, prompt=prompt, response=choices[_check(question)], choices=choices)


def _block(question: Example) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
    return "\n".join([(question.prompt or "").strip(), *lines, "Answer:"])


def _check(question: Example) -> int:
    """Returns the index of the right choice."""
    if question.answer is None or not 2 <= len(question.choices) <= len(LETTERS):
        raise ExpungeError(
            f"example {question.id} is no question with choices and the index of the right one; add `choices` and `answer`"
        )
    return question.answer
