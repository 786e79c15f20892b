"""Splits a set of examples by the values of an attribute, such as group, topic or language."""

from collections.abc import Sequence

from expunge.data.example import Attribute, Example
from expunge.errors import ExpungeError, nearest


def rows_by_attribute(examples: Sequence[Example], key: str) -> dict[Attribute, tuple[int, ...]]:
    """Returns the row indices of each value of an attribute; values in the order of their first example."""
    check_attribute(examples, key)
    parts: dict[Attribute, list[int]] = {}
    for row, example in enumerate(examples):
        parts.setdefault(example.attributes[key], []).append(row)
    return {value: tuple(rows) for value, rows in parts.items()}


def check_attribute(examples: Sequence[Example], key: str) -> None:
    """Raises ExpungeError unless every example has the attribute; the message counts those without and names the first."""
    missing = [row for row, example in enumerate(examples) if key not in example.attributes]
    if missing:
        known = list(dict.fromkeys(name for example in examples for name in example.attributes))
        there = f"they have {', '.join(known)}" if known else "they have none"
        hint = "" if key in known else nearest(key, known)
        raise ExpungeError(
            f"{len(missing)} of {len(examples)} examples have no attribute '{key}'{hint}, the first of them "
            f"{place_of(examples, missing[0])}; {there}, and --columns attributes.{key} COLUMN names its column"
        )


def place_of(examples: Sequence[Example], row: int) -> str:
    """Returns how messages name an example: its file and line, or its number."""
    return examples[row].place or f"example {row + 1}"
