"""What an unlearning run in the lab is told to keep: the retain people, and some of everything else that must stay.

A retain set of people alone lets the skills fall first (measured in the prototype): nothing in it holds them.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from expunge.data.example import Example
from expunge.data.read import read_examples

OTHERS = (
    "facts/public",
    "skills/arithmetic/train",
    "skills/strings/train",
    "general/corpus",
    "behavior/normal",
)
EACH = 60
"""Rows of each other part, beside all rows of the retain people."""


def keep(lab: Path, seed: int, without: Sequence[str] = (), each: int = EACH) -> tuple[Example, ...]:
    """All retain people and `each` rows of every other part but those in `without` (`skills/arithmetic`, `hazard`, ...)."""
    data = lab / "data"
    languages = sorted(f"languages/{p.name}/train" for p in (data / "languages").iterdir() if p.is_dir())
    hazards = sorted(f"hazard/{p.name}/corpus" for p in (data / "hazard").iterdir() if p.is_dir())
    rows = list(read_examples(data / "facts/retain.jsonl"))
    for name in (*OTHERS, *languages, *hazards):
        if not any(name == part or name.startswith(f"{part}/") for part in without):
            part = read_examples(data / f"{name}.jsonl")
            rows += random.Random(f"{seed} {name}").sample(part, min(each, len(part)))
    return tuple(rows)
