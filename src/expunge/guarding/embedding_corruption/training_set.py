"""Builds what a gate is trained on: forget prompts, against retain prompts and general ones.

A gate that has seen only two similar kinds of prompts, such as questions about authors to forget and about authors to keep, may
take anything else for the kind to forget. General prompts show it what else people ask (docs/prompts.md has figures).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from expunge.data.example import Example
from expunge.data.general_questions import general_prompts
from expunge.data.read import read_examples
from expunge.guarding.embedding_corruption.canonical import canonical
from expunge.guarding.embedding_corruption.selection import Finder, own_entities

CHECKED = 4
"""One of so many general prompts is not trained on, and shows how many of them a gate flags."""


class TrainingSet(NamedTuple):
    """Texts of both classes, and how much each counts."""

    texts: tuple[str, ...]
    is_forget: tuple[bool, ...]
    weights: tuple[float, ...]
    """Mean 1; both classes count the same, and every text of a class does."""
    window: int
    """Characters of nearly all forget and retain texts, and a half more."""

    @classmethod
    def of(cls, forget: Sequence[str], retain: Sequence[str], general: Sequence[str] = ()) -> "TrainingSet":
        kept = (*retain, *general)
        half = (len(forget) + len(kept)) / 2
        usual = float(np.quantile([len(text) for text in (*forget, *retain)], 0.95))
        return cls(
            (*forget, *kept),
            (*[True] * len(forget), *[False] * len(kept)),
            (*[half / len(forget)] * len(forget), *[half / len(kept)] * len(kept)),
            max(48, int(1.5 * usual)),
        )


class General(NamedTuple):
    """General prompts, which a gate must let pass."""

    trained: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    """Not trained on."""


def general_negatives(source: str, forget: Sequence[Example], retain: Sequence[Example]) -> General:
    """Reads general prompts: `general` for those of expunge, `none`, or rows of one's own, of which the prompts count.

    Left out are those that are a forget or retain prompt, and those with a name that only the forget set has.

    Raises ExpungeError if the source cannot be read.
    """
    if source == "none":
        return General()
    found = general_prompts() if source == "general" else prompts_of(read_examples(source))
    taken = {canonical(text) for text in prompts_of([*forget, *retain])}
    names = Finder(own_entities(forget, retain))
    free = [text for text in dict.fromkeys(found) if canonical(text) not in taken and not names.spans(text)]
    checked = tuple(free[CHECKED - 1 :: CHECKED])
    return General(tuple(text for i, text in enumerate(free) if i % CHECKED != CHECKED - 1), checked)


def prompts_of(examples: Sequence[Example]) -> list[str]:
    """Returns the distinct prompts of examples."""
    return list(dict.fromkeys(map(prompt_of, examples)))


def prompt_of(example: Example) -> str:
    """Returns what a gate reads of an example: its prompt, or for raw text the text."""
    return example.response if example.prompt is None else example.prompt
