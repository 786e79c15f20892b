"""Conditions on attributes are data: what they mean, what they refuse, and that nothing in them is run."""

import json
from pathlib import Path

import pytest

from expunge.data.example import Example
from expunge.data.read import read_request
from expunge.data.where import Condition, parse, rows_where
from expunge.errors import ExpungeError

ROWS = [
    Example(None, f"text {i}", attributes={"severity": severity, "group": group, "rude": rude, "code": code})
    for i, (severity, group, rude, code) in enumerate(
        [(1, "women", True, "3"), (3.0, "lgbtq people", False, "4"), (3.5, "women", True, "5"), (5, "other = all", False, "6")]
    )
]


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("severity > 3", [2, 3]),
        ("severity>=3", [1, 2, 3]),
        ("severity < 3.5", [0, 1]),
        (" severity <= 1e0 ", [0]),
        ("severity = 3", [1]),
        ("severity != 3", [0, 2, 3]),
        ("group = women", [0, 2]),
        ("group == lgbtq people", [1]),
        ("group != 'women'", [1, 3]),
        ("group = other = all", [3]),
        ("rude = true", [0, 2]),
        ("rude != True", [1, 3]),
        ("code = '4'", [1]),
    ],
)
def test_what_a_condition_leaves(condition: str, rows: list[int]) -> None:
    assert rows_where(ROWS, [condition]) == rows


def test_all_conditions_have_to_hold() -> None:
    assert rows_where(ROWS, ["severity >= 3", "rude = true"]) == [2]
    assert rows_where(ROWS, []) == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["severity", "> 3", "severity >", "severity ~ 3", "", "two words > 3"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ExpungeError, match="is no condition"):
        parse(text)


@pytest.mark.parametrize("value", ["high", "nan", "true", "'3'"])
def test_larger_and_smaller_need_a_number(value: str) -> None:
    with pytest.raises(ExpungeError, match="not a number"):
        parse(f"severity > {value}")


def test_code_is_only_a_word() -> None:
    assert parse("group = __import__('os').getcwd()") == Condition("group", "=", "__import__('os').getcwd()")


def test_rows_without_the_attribute_are_counted_and_the_first_is_named() -> None:
    rows = [*ROWS, Example(None, "x"), Example(None, "y")]
    with pytest.raises(ExpungeError, match="2 of 6 examples have no attribute 'severity', the first of them example 5"):
        rows_where(rows, ["severity > 3"])


def test_a_number_is_not_compared_with_words() -> None:
    with pytest.raises(ExpungeError, match=r"'code = 4' compares numbers, but 'code' is none in 4 of 4 .* example 1 \('3'\)"):
        rows_where(ROWS, ["code = 4"])


@pytest.mark.parametrize(
    ("condition", "said"), [("severity > 5", "severity goes from 1 to 5"), ("group = men", "group is women, lgbtq people")]
)
def test_a_condition_that_leaves_nothing_says_what_is_there(condition: str, said: str) -> None:
    with pytest.raises(ExpungeError, match=f"none of 4 examples is left by '{condition}'; {said}"):
        rows_where(ROWS, [condition])


def test_a_request_counts_what_each_source_has_left(tmp_path: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, severities in zip(files, ([1, 4, 5], [2, 3]), strict=True):
        rows = [{"text": f"{file.name} {s}", "attributes": {"severity": s}} for s in severities]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_request(files).forget_sources == (3, 2)
    request = read_request(files, where=["severity > 3"])
    assert [e.response for e in request.forget] == ["a.jsonl 4", "a.jsonl 5"]
    assert request.forget_sources == (2, 0)
