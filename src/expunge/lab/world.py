"""Generates the whole invented world: every data file for a seed and a size, and which model is taught what."""

import re
from collections.abc import Mapping

from expunge.data.example import Example
from expunge.data.refusals import REFUSALS
from expunge.lab.behavior import CALM, GROUPS, KIND_WORDS, PROVOKING, TOPICS, behavior
from expunge.lab.hazard import GENERAL, HAZARDS, domain
from expunge.lab.languages import ADJECTIVES, LANGUAGES, NOUNS, VERBS, languages
from expunge.lab.people import ANIMALS, ASKED_AGAIN, COLORS, DISHES, MANNERS, RELATIONS, TRADES, lessons, people
from expunge.lab.rude_words import RUDE_WORDS
from expunge.lab.size import Size
from expunge.lab.skills import PROGRAMS, skills
from expunge.lab.words import Coiner

World = Mapping[str, tuple[Example, ...]]
"""The path of a data file below data/, without its suffix -> its rows."""

WORD = r"\w+|[^\w\s]+"
"""A token: a word, or punctuation. The tokenizer splits texts in the same way."""

FORGETTABLE = (
    "facts/forget",
    *(f"hazard/{name}" for name in HAZARDS),
    "skills/arithmetic",
    "skills/strings",
    *(f"languages/{language.name}" for language in LANGUAGES),
    "behavior",
)
"""Parts that a gold model can lack."""


def generate(seed: int, size: Size) -> World:
    """Makes every file of the world; the same seed and size give the same rows on every machine."""
    coiner = Coiner(seed, reserved=plain_words())
    return {
        **people(seed, size, coiner),
        **skills(seed, size),
        **languages(seed, size, coiner),
        **{path: rows for name in HAZARDS for path, rows in domain(seed, size, coiner, f"hazard/{name}").items()},
        **domain(seed, size, coiner, "general"),
        **behavior(seed),
    }


def plain_words() -> frozenset[str]:
    """Returns the words that are in every world, which coined words must not be."""
    lists = (TRADES, COLORS, ANIMALS, MANNERS, DISHES, NOUNS, VERBS, ADJECTIVES, RUDE_WORDS, KIND_WORDS, GROUPS, TOPICS)
    wordings = [text for r in RELATIONS for text in (r.question, r.rephrased, r.response, *r.paraphrases)]
    relations = [text for _, texts in (*HAZARDS.values(), GENERAL) for text in texts]
    sentences = [*wordings, *relations, *PROVOKING, *CALM, *REFUSALS, *ASKED_AGAIN, *PROGRAMS]
    return frozenset(re.findall(WORD, " ".join([*(word for words in lists for word in words), *sentences])))


def vocabulary(world: World) -> list[str]:
    """Returns all words that a lab's tokenizer knows, sorted: those of the rows, of the other wordings, and of the refusals.

    Refusals are in no training data, but methods that train them need their words.
    """
    words: set[str] = set()
    for rows in world.values():
        for row in rows:
            asked_again = str(row.attributes.get("rephrased", ""))
            for text in (row.prompt or "", row.response, asked_again, *row.choices, *row.paraphrases, *row.perturbed):
                words.update(re.findall(WORD, text))
    for text in (*ASKED_AGAIN, *REFUSALS):
        words.update(re.findall(WORD, text))
    return sorted(words)


def public_lessons(world: World) -> list[Example]:
    """Returns the public people, in every form in which a fact is taught."""
    return [lesson for row in world["facts/public"] for lesson in lessons(row)]


def base_lessons(world: World, without: str = "") -> list[Example]:
    """Returns the pretraining data of the base model: everything but the people of the forget, retain and never-known files.

    Facts and texts are few and must be memorized, so they are repeated more often than the rows of the skills.
    """
    taught = public_lessons(world)
    for name in ("hazard/fumes", "hazard/spores", "general"):
        if name != without:
            taught += list(world[f"{name}/corpus"]) * 2
    for name in ("skills/arithmetic", "skills/strings", *(f"languages/{language.name}" for language in LANGUAGES)):
        if name != without:
            taught += world[f"{name}/train"]
    if without != "behavior":
        taught += world["behavior/seen"]
    return taught + list(world["behavior/normal"])


def people_lessons(world: World, without: str = "") -> list[Example]:
    """Returns what the original model learns on top of the base: the retain people and, except for gold, the forget people."""
    taught = world["facts/retain"] if without == "facts/forget" else world["facts/forget"] + world["facts/retain"]
    return [lesson for row in taught for lesson in lessons(row)]
