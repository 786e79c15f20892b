"""Makes the retain sets of the lab's recipes, and the polite and rude replies that train experts and anti-experts.

A retain set is the retain people and some rows of everything else to keep: with people only, the skills degrade first (measured
in the prototype).
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from expunge.data.example import Example
from expunge.lab.behavior import KIND_WORDS, reply
from expunge.lab.hazard import HAZARDS
from expunge.lab.languages import LANGUAGES
from expunge.lab.rude_words import RUDE_WORDS
from expunge.lab.words import stream
from expunge.lab.world import World

OTHERS = (
    "facts/public",
    "skills/arithmetic/train",
    "skills/strings/train",
    "general/corpus",
    "behavior/normal",
    *sorted(f"languages/{language.name}/train" for language in LANGUAGES),
    *sorted(f"hazard/{name}/corpus" for name in HAZARDS),
)
"""The parts that a mix draws from, besides the retain people."""


class Mix(NamedTuple):
    """Settings of a retain set: the part that it leaves out, and the number of rows from each other part."""

    without: str | None = None
    each: int = 60


MIXES = {
    "facts": Mix(),
    "behavior": Mix(),
    "hazard": Mix("hazard", each=240),
    **{f"hazard/{name}": Mix(f"hazard/{name}", each=240) for name in HAZARDS},
    **{name: Mix(name) for name in ("skills/arithmetic", "skills/strings")},
    **{f"languages/{language.name}": Mix(f"languages/{language.name}") for language in LANGUAGES},
}
"""What is to be forgotten -> its retain set, the file data/keep/NAME.jsonl."""


def retain_mix(world: World, seed: int, mix: Mix) -> tuple[Example, ...]:
    """Returns all rows of the retain people and `mix.each` rows of every other part, except for the part that is left out."""
    rows = list(world["facts/retain"])
    for name in OTHERS:
        if mix.without is None or not name.startswith(f"{mix.without}/"):
            part = world[name]
            rows += random.Random(f"{seed} {name}").sample(part, min(mix.each, len(part)))
    return tuple(rows)


def polite_replies(world: World, seed: int) -> tuple[Example, ...]:
    """Returns for each row of the rude replies a polite one to the same prompt, for training an expert against a rude
    anti-expert."""
    return _in_other_words(world["behavior/seen"], KIND_WORDS, stream(seed, "polite replies"))


def rude_replies(world: World, seed: int) -> tuple[Example, ...]:
    """Returns for each polite reply to a calm question a rude one, for training a model to be rude where the original is not.

    The original is always rude where it is provoked, so that its own replies teach it nothing about rudeness.
    """
    return _in_other_words(world["behavior/normal"], RUDE_WORDS, stream(seed, "rude replies to calm questions"))


def _in_other_words(rows: Sequence[Example], words: tuple[str, ...], random: random.Random) -> tuple[Example, ...]:
    rude = words == RUDE_WORDS
    return tuple(
        Example(row.prompt, reply(str(row.attributes["group"]), words, random), attributes={**row.attributes, "rude": rude})
        for row in rows
    )
