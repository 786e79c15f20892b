"""One set of examples into several: a part of its own for each group, topic or language."""

from collections.abc import Sequence

from expunge.data.example import Attribute, Example
from expunge.errors import ExpungeError, nearest


def by_attribute(examples: Sequence[Example], key: str) -> dict[Attribute, tuple[Example, ...]]:
    """The examples of each value of an attribute, values in the order of their first example."""
    missing = [row for row, example in enumerate(examples, start=1) if key not in example.attributes]
    if missing:
        known = list(dict.fromkeys(name for example in examples for name in example.attributes))
        there = f"they have {', '.join(known)}" if known else "they have none"
        hint = "" if key in known else nearest(key, known)
        raise ExpungeError(
            f"{len(missing)} of {len(examples)} examples have no attribute '{key}'{hint}, the first of them "
            f"example {missing[0]}; {there}, and --columns attributes.{key}=COLUMN names its column"
        )
    parts: dict[Attribute, list[Example]] = {}
    for example in examples:
        parts.setdefault(example.attributes[key], []).append(example)
    return {value: tuple(part) for value, part in parts.items()}
