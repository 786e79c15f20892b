"""The whole invented world: every data file of a seed and a size, and who is taught what."""

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
"""What a gold model can be without."""


def generate(seed: int, size: Size) -> World:
    """Every file of the world; the same seed and size give the same rows everywhere."""
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
    """The words that are in every world; a coined word must be none of them."""
    lists = (TRADES, COLORS, ANIMALS, MANNERS, DISHES, NOUNS, VERBS, ADJECTIVES, RUDE_WORDS, KIND_WORDS, GROUPS, TOPICS)
    wordings = [text for r in RELATIONS for text in (r.question, r.rephrased, r.response, *r.paraphrases)]
    relations = [text for _, texts in (*HAZARDS.values(), GENERAL) for text in texts]
    sentences = [*wordings, *relations, *PROVOKING, *CALM, *REFUSALS, *ASKED_AGAIN, *PROGRAMS]
    return frozenset(re.findall(WORD, " ".join([*(word for words in lists for word in words), *sentences])))


def vocabulary(world: World) -> list[str]:
    """All words that a lab's tokenizer knows, sorted: those of the rows, of the other wordings, and of the refusals.

    Refusals are in no training data, but a method that teaches one has to be able to say it.
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
    """The public people, in every way that a fact is taught."""
    return [lesson for row in world["facts/public"] for lesson in lessons(row)]


def base_lessons(world: World, without: str = "") -> list[Example]:
    """What the base model is pretrained on: everything but the people of the forget, retain and never-known files.

    Facts and texts are few and have to be learned by heart, so they come more often than the rows of the skills.
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
    """What the original model learns on top of the base: the retain people and, but for gold, the forget people."""
    taught = world["facts/retain"] if without == "facts/forget" else world["facts/forget"] + world["facts/retain"]
    return [lesson for row in taught for lesson in lessons(row)]
