"""Parses and applies conditions on attributes, such as `severity > 3`. Nothing is evaluated as code."""

import math
import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from expunge.data.example import Attribute, Example
from expunge.data.split import check_attribute, place_of
from expunge.errors import ExpungeError

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"\s*(?P<name>[^\s<>=!]+)(\s*(?P<comparison><=|>=|!=|==|=|<|>)\s*|\s+in\s+)(?P<value>.*?)\s*", re.DOTALL)


class Condition(NamedTuple):
    """One comparison of an attribute with a value, or with several (`in`)."""

    attribute: str
    comparison: str
    value: str | float | bool | tuple[str | float | bool, ...]

    def holds(self, found: Attribute) -> bool:
        """Returns whether the condition holds: numbers compare as numbers, texts and booleans by equality only."""
        if isinstance(self.value, tuple):
            return any(Condition(self.attribute, "=", value).holds(found) for value in self.value)
        if isinstance(self.value, float):
            return _is_number(found) and COMPARISONS[self.comparison](float(found), self.value)
        same = found == self.value if isinstance(self.value, bool) else str(found) == self.value
        return same is (self.comparison != "!=")

    def __str__(self) -> str:
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        return f"{self.attribute} {self.comparison} {', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)}"


def parse(text: str) -> Condition:
    """Parses `NAME < <= > >= = != VALUE` or `NAME in VALUE, VALUE ...`; a value is a number, true, false, or words, quoted if
    they would be a number. Raises ExpungeError for anything else."""
    match = _CONDITION.fullmatch(text)
    if not match or not match["value"]:
        raise ExpungeError(f"'{text}' is no condition; write an attribute, a comparison and a value, such as 'severity > 3'")
    if match["comparison"] is None:
        values = [word.strip() for word in match["value"].split(",")]
        if not all(values):
            raise ExpungeError(f"'{text}' has an empty value; write them with commas between, such as 'group in women, muslim'")
        return Condition(match["name"], "in", tuple(_value(word) for word in values))
    value = _value(match["value"])
    if match["comparison"] in ("<", "<=", ">", ">=") and not isinstance(value, float):
        raise ExpungeError(f"'{text}' compares with '{match['value']}', which is not a number; use = or != for words")
    return Condition(match["name"], match["comparison"], value)


def rows_where(examples: Sequence[Example], conditions: Sequence[str]) -> list[int]:
    """Returns the indices of the examples for which all conditions hold.

    Raises ExpungeError for a condition that cannot be parsed, for rows without the attribute or with words where a number is
    compared (with their number and the first one), and for conditions that hold for no row.
    """
    rows = list(range(len(examples)))
    for text in conditions:
        condition = parse(text)
        check_attribute(examples, condition.attribute)
        if any(isinstance(v, float) for v in (condition.value if isinstance(condition.value, tuple) else (condition.value,))):
            _check_numbers(examples, condition)
        rows = [row for row in rows if condition.holds(examples[row].attributes[condition.attribute])]
        if not rows:
            raise ExpungeError(f"none of {len(examples)} examples is left by '{text}'{_seen(examples, condition.attribute)}")
    return rows


def choose(examples: Sequence[Example], where: Sequence[str], only: str | Path | None) -> list[int]:
    """Returns the indices of the examples that a file names and for which all conditions hold."""
    rows = set(rows_where(examples, where))
    return sorted(rows) if only is None else [row for row in rows_only(examples, only) if row in rows]


def rows_only(examples: Sequence[Example], file: str | Path) -> list[int]:
    """Returns the indices of the examples that `write_rows` wrote. Raises ExpungeError if these examples have changed."""
    try:
        lines = [line.split() for line in Path(file).read_text(encoding="utf-8").splitlines()]
        rows = [(int(row), known) for row, known in lines]
    except (OSError, ValueError) as error:
        raise ExpungeError(f"{file} is no list of rows ({error}); each line is the place of a row and its id") from error
    for row, known in rows:
        if not 0 <= row < len(examples) or examples[row].id != known:
            raise ExpungeError(
                f"{file} names row {row} with id {known}, which the data does not have there; give the data that the file was "
                "made from"
            )
    return [row for row, _ in rows]


def write_rows(examples: Sequence[Example], rows: Sequence[int]) -> str:
    """Formats the chosen rows as text: index and id, without their content."""
    return "".join(f"{row} {examples[row].id}\n" for row in rows)


def _value(text: str) -> str | float | bool:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _is_number(value: Attribute) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_numbers(examples: Sequence[Example], condition: Condition) -> None:
    """Raises ExpungeError if a number is compared with words, which would never be equal: `group = 3` for `group: "3"`."""
    words = [row for row, e in enumerate(examples) if not _is_number(e.attributes[condition.attribute])]
    if words:
        first = examples[words[0]].attributes[condition.attribute]
        raise ExpungeError(
            f"'{condition}' compares numbers, but '{condition.attribute}' is none in {len(words)} of {len(examples)} examples, "
            f"the first of them {place_of(examples, words[0])} ('{first}'); put the value in quotes, or correct the data"
        )


def _seen(examples: Sequence[Example], attribute: str) -> str:
    values = [example.attributes[attribute] for example in examples]
    numbers = [float(value) for value in values if _is_number(value)]
    if len(numbers) == len(values):
        return f"; {attribute} goes from {min(numbers):g} to {max(numbers):g}"
    different = list(dict.fromkeys(map(str, values)))
    return f"; {attribute} is {', '.join(different[:8])}{' ...' if len(different) > 8 else ''}"
