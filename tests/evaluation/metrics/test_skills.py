"""Metrics of the skills: numbers, phrases in seven languages, programs, choices by length."""

from decimal import Decimal

import numpy as np
import pytest

from expunge.data.example import Example
from expunge.evaluation.metrics import (
    F1,
    Accuracy,
    AccuracyNormalized,
    Containment,
    ExactMatch,
    PassAt1,
    PromptCut,
    Row,
    TokenStats,
    Unscored,
)
from expunge.evaluation.metrics.f1 import f1
from expunge.evaluation.metrics.normalization import LANGUAGES, words
from expunge.evaluation.metrics.numbers import stated_number
from expunge.evaluation.metrics.pass_at_1 import program


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7. The answer is 7.", "7"),
        ("The answer is 7. The answer is 8.", "7"),
        ("It takes 5 days.\n#### 12", "12"),
        ("The final answer is: $1,234.50, which", "1234.5"),
        ("the answer is **42**", "42"),
        ("The answer is -$5", "-5"),
        ("The answer is $-5", "-5"),
        ("The answer is −5", "-5"),
        ("it was 1,000,000 in all", "1000000"),
        ("first 3, then 4", "4"),
        ("10-3", "3"),
        ("7.", "7"),
        ("a half is .5", "0.5"),
        ("007", "7"),
        ("18.0", "18"),
        ("The answer is unknown, but 9 was said", "9"),
    ],
)
def test_the_stated_number_is_read_exactly(text: str, number: str) -> None:
    assert stated_number(text) == Decimal(number)


def test_no_number_is_none_and_wrong() -> None:
    assert stated_number("The answer is none.") is None
    assert ExactMatch(reading="number").score(Row(Example("q", "#### 3"), generated="none")) == 0.0


def test_numbers_are_compared_as_decimals_not_as_floats_or_texts() -> None:
    def score(right: str, written: str) -> float | Unscored:
        return ExactMatch(reading="number").score(Row(Example("q", f"The answer is 15 so far.\n#### {right}"), generated=written))

    assert score("1,000", "The answer is 1000.00") == 1.0
    assert score("0.3", "The answer is 0.30000000000000004") == 0.0
    assert score("010", "10") == 1.0
    assert score("15", "14, no: The answer is 15") == 1.0
    assert score("16", "The answer is 15") == 0.0


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "The  Cat, an apple!", "cat apple"),
        ("en", "another theory", "another theory"),
        ("de", "Der Hund des Bäckers.", "hund bäckers"),
        ("es", "¿Los niños de la casa?", "niños de casa"),
        ("vi", "Những con mèo là của tôi", "con mèo tôi"),
        ("ar", "الكتاب والقلم", "كتاب و قلم"),
        ("hi", "यह एक किताब है।", "यह एक किताब है"),
        ("zh", "在1985年，IBM 公司", "在 1985 年 ibm 公 司"),
        ("en", "“quoted” – dash’s", "quoted dashs"),
    ],
)
def test_words_are_those_of_the_official_script(language: str, text: str, expected: str) -> None:
    assert words(text, language) == expected.split()


def test_each_language_of_mlqa_has_a_normalization() -> None:
    assert set(LANGUAGES) == {"en", "de", "es", "ar", "zh", "vi", "hi"}


def row(written: str | None, *right: str, language: str = "en") -> Row:
    return Row(Example("q", right[0], paraphrases=right[1:], attributes={"language": language}), generated=written)


def test_exact_match_takes_the_best_right_answer() -> None:
    assert ExactMatch().score(row("the Panthers.", "panthers")) == 1.0
    assert ExactMatch().score(row("panthers", "lions", "The panthers")) == 1.0
    assert ExactMatch().score(row("panthers and lions", "panthers")) == 0.0
    assert ExactMatch().score(row("der Hund", "hund", language="de")) == 1.0
    assert ExactMatch().score(row("der Hund", "hund", language="en")) == 0.0


def test_f1_by_hand() -> None:
    assert f1(["a", "b", "c"], ["b", "c", "d", "e"]) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert f1([], []) == f1(["a"], []) == f1(["a"], ["b"]) == 0.0
    assert f1(["a", "a"], ["a"]) == pytest.approx(2 / 3)
    assert F1().score(row("in the year 1985", "1985", "year 1985")) == pytest.approx(0.8)
    assert F1().score(row("1985年", "1985 年", language="zh")) == 1.0


def test_containment_is_letter_by_letter() -> None:
    assert Containment().score(row("It was 1985, they say", "1985")) == 1.0
    assert Containment().score(row("it was the PANTHERS", "Panthers")) == 0.0
    assert Containment().score(row("by lions", "Panthers", "lions")) == 1.0


@pytest.mark.parametrize(
    "metric", [ExactMatch(), F1(), Containment(), ExactMatch(reading="number"), PassAt1(allow_code_execution=True)]
)
def test_what_was_not_asked_is_not_scored(metric: ExactMatch | F1 | Containment | PassAt1) -> None:
    assert metric.score(row(None, "#### 1")) == Unscored("the model was not asked: raw text has no prompt")


@pytest.mark.parametrize("metric", [ExactMatch(), F1()])
def test_a_language_without_official_normalization_is_unscored(metric: ExactMatch | F1) -> None:
    assert metric.score(row("ein", "ein", language="nl")) == Unscored("there is no official normalization for the language nl")


ADD = Example("Write add.", "def add(a, b): return a + b", attributes={"tests": "assert add(1, 2) == 3"})


def test_code_is_not_run_and_not_even_written_without_permission() -> None:
    assert PassAt1().needs == PassAt1().needs_of(ADD) == frozenset()
    verdict = PassAt1().score(Row(ADD, generated=ADD.response))
    assert isinstance(verdict, Unscored)
    assert "--allow-code-execution" in verdict.reason


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("def add(a, b):\n    return a + b\n", 1.0),
        ("def add(a, b):\n    return a - b\n", 0.0),
        ("Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nGood luck!", 1.0),
        ("def add(a, b):\n    return a + b\n\nThat adds a to b.", 1.0),
        ("import os\ndef add(a, b):\n    return a + b\n", 0.0),
        ("", 0.0),
    ],
)
def test_programs_are_run_with_their_tests(written: str, value: float) -> None:
    assert PassAt1(allow_code_execution=True).score(Row(ADD, generated=written)) == value


def test_a_completion_goes_on_after_its_prompt() -> None:
    attributes = {"before": "def add(a, b):\n", "tests": "assert add(1, 2) == 3"}
    example = Example("def add(a, b):\n", "    return a + b", attributes=attributes)
    assert PassAt1(allow_code_execution=True).score(Row(example, generated="    return a + b\n\nNow the next task")) == 1.0
    assert PassAt1(allow_code_execution=True).score(Row(example, generated="return a + b")) == 0.0


def test_the_program_is_the_longest_beginning_that_is_python() -> None:
    assert program("", "x = 1\ny = (2,\n") == "x = 1"
    assert program("def f():\n", "    return 1\n    return (") == "def f():\n    return 1"
    assert program("", "text ```py\nx = 1\n``` more ```y```") == "x = 1"
    assert program("", "```\nx = 1") == "x = 1"
    assert program("", "not python") == "not python"


def test_choices_are_compared_by_character() -> None:
    """Sums -4 and -5: `accuracy` takes the short one; per character -4/1 and -5/10, so the long one wins."""

    def stats(value: float) -> TokenStats:
        return TokenStats(np.array([value], np.float32), np.array([False]), False)

    example = Example("q", " abcdefghij", (" a", " abcdefghij"), 1)
    assert AccuracyNormalized().score(Row(example, choices=(stats(-4), stats(-5)))) == 1.0
    assert Accuracy().score(Row(example, choices=(stats(-4), stats(-5)))) == 0.0
    assert AccuracyNormalized().score(Row(example, choices=(stats(-0.51), stats(-5)))) == 1.0
    assert AccuracyNormalized().score(Row(example, choices=(stats(-0.49), stats(-5)))) == 0.0
    assert AccuracyNormalized().score(Row(Example("q", "a"))) == Unscored("the example has no choices with the index `answer`")


def test_cut_prompts_count() -> None:
    assert [PromptCut().score(Row(ADD, cut=cut)) for cut in (True, False)] == [1.0, 0.0]
