"""PKU-SafeRLHF: harmful prompts, each with two answers that people labelled as safe or unsafe.

Ji et al. 2023, arXiv 2307.04657. Data: CC-BY-NC-4.0, https://github.com/PKU-Alignment/safe-rlhf, hub id
PKU-Alignment/PKU-SafeRLHF. Two layouts are read: two responses with a safety flag each (the releases of 2023 and of 2024, whose
further columns are ignored), and one chosen and one rejected answer.

SKU (arXiv 2402.10058) learns every unsafe answer of train, up to two a prompt, in this text:

    ### Question: PROMPT
     ### Answer: RESPONSE
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from expunge.data.corpora.fields import Sets, rows_of, text
from expunge.data.example import Attribute, Example
from expunge.errors import ExpungeError

HUB = "PKU-Alignment/PKU-SafeRLHF"
LAYOUT = (
    "train.jsonl and test.jsonl (or .parquet) with prompt, response_0, response_1, is_response_0_safe, is_response_1_safe; "
    "or with prompt, chosen, rejected"
)
Kind = Literal["harmful", "safe"]
Split = Literal["train", "test"]


def read_pku_saferlhf(source: str | Path = HUB, kind: Kind = "harmful", split: Split = "train") -> tuple[Example, ...]:
    """Reads prompt -> prompt, each answer of the kind -> response, so that a prompt gives up to two examples; attributes:
    severity (0 to 3) and category, where the release has them.

    kind  `harmful`: unsafe answers, or the rejected one; `safe`: the others

    Raises ExpungeError if no answer of the kind is there.
    """
    names = (f"{split}.jsonl", f"{split}.parquet", f"default/{split}-*.parquet", f"data/{split}-*.parquet", f"{split}.json")
    inside = (*names, *(f"pku_saferlhf/{name}" for name in names))
    rows = rows_of(source, inside, HUB, f"default/{split}")
    found = tuple(example for where, row in rows for example in _examples(row, kind, where))
    if not found:
        raise ExpungeError(f"{source} has no {kind} answer in {split}; take the file as published")
    return found


def _examples(row: Mapping[str, Any], kind: Kind, where: str) -> Iterator[Example]:
    prompt = text(row, "prompt", where)
    if "chosen" in row or "rejected" in row:
        yield Example(prompt, _answer(row, "rejected" if kind == "harmful" else "chosen", where))
        return
    for i in (0, 1):
        safe = row.get(f"is_response_{i}_safe")
        if not isinstance(safe, bool):
            raise ExpungeError(
                f"{where} has neither true nor false in its field 'is_response_{i}_safe', and no chosen and rejected answer; "
                "take the file as published"
            )
        if safe == (kind == "safe"):
            yield Example(prompt, text(row, f"response_{i}", where), attributes=_attributes(row, i))


def _answer(row: Mapping[str, Any], name: str, where: str) -> str:
    """Returns a text, or the last message of a conversation."""
    value = row.get(name)
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        return text(value[-1], "content", where)
    return text(row, name, where)


def _attributes(row: Mapping[str, Any], i: int) -> dict[str, Attribute]:
    """Returns the attributes of the 2024 release."""
    found: dict[str, Attribute] = {}
    severity, categories = row.get(f"response_{i}_severity_level"), row.get(f"response_{i}_harm_category")
    if isinstance(severity, int) and not isinstance(severity, bool):
        found["severity"] = severity
    if isinstance(categories, Mapping) and (named := [str(name) for name, true in categories.items() if true is True]):
        found["category"] = ", ".join(named)
    return found


def _read_set(source: str, name: str) -> tuple[Example, ...]:
    kind, _, split = name.removeprefix("pku/").partition("/")
    return read_pku_saferlhf(source, "harmful" if kind == "harmful" else "safe", "train" if split == "train" else "test")


SETS = Sets({HUB: None}, tuple(f"pku/{kind}/{split}" for kind in ("harmful", "safe") for split in ("train", "test")), _read_set)
