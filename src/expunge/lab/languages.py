"""Generates four small invented languages: sentences, and their meaning in plain words.

Orvish and orvane are related: they share half of their words, and the order of subject, verb and object. A method that forgets
one and keeps the other separates more than words.
"""

from dataclasses import dataclass
from random import Random

from expunge.data.example import Example
from expunge.lab.size import Size
from expunge.lab.words import Coiner, stream

NOUNS = ("bird", "child", "river", "king", "tree", "stone", "wolf", "boat")
VERBS = ("sees", "follows", "finds", "hides", "carries", "calls")
ADJECTIVES = ("old", "small", "red", "quiet")


@dataclass(frozen=True, slots=True)
class Language:
    """A grammar over the shared meanings: word order, and whether an adjective follows its noun."""

    name: str
    order: str
    """The order of s(ubject), v(erb) and o(bject)."""
    adjective_last: bool
    ending: str
    relative: str | None = None
    """The language that it shares half of its words with."""


LANGUAGES = (
    Language("orvish", "svo", adjective_last=False, ending="a"),
    Language("orvane", "svo", adjective_last=True, ending="e", relative="orvish"),
    Language("tullic", "sov", adjective_last=False, ending="ik"),
    Language("peskan", "vso", adjective_last=True, ending="u"),
)


def lexicons(coiner: Coiner) -> dict[str, dict[str, str]]:
    """Returns for each language its word for each meaning. Only related languages share words."""
    meanings = NOUNS + VERBS + ADJECTIVES
    spoken: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        lent = spoken[language.relative] if language.relative else {}
        spoken[language.name] = {
            meaning: lent[meaning] if lent and i % 2 == 0 else coiner.word(language.ending) for i, meaning in enumerate(meanings)
        }
    return spoken


def sentence(language: Language, lexicon: dict[str, str], random: Random) -> Example:
    """Makes a random sentence and its meaning: `tova lisa moruna` -> `old bird sees child`."""
    subject, object_ = random.sample(NOUNS, 2)
    parts = {"s": [subject], "v": [random.choice(VERBS)], "o": [object_]}
    for noun in (parts["s"], parts["o"]):
        if random.random() < 0.5:
            noun.insert(0, random.choice(ADJECTIVES))
    meaning = parts["s"] + parts["v"] + parts["o"]
    said = [word for role in language.order for word in (parts[role][::-1] if language.adjective_last else parts[role])]
    return Example(" ".join(lexicon[word] for word in said), " ".join(meaning), attributes={"language": language.name})


def languages(seed: int, size: Size, coiner: Coiner) -> dict[str, tuple[Example, ...]]:
    """Makes languages/NAME/train and languages/NAME/test for each language; no sentence is in two files.

    Each sentence has at least one word of its own language, since shared words alone would belong to both.
    """
    spoken = lexicons(coiner)
    files: dict[str, tuple[Example, ...]] = {}
    for language in LANGUAGES:
        random = stream(seed, f"languages/{language.name}")
        lent = spoken[language.relative].values() if language.relative else ()
        rows: dict[str, Example] = {}
        while len(rows) < size.sentences + size.tests:
            row = sentence(language, spoken[language.name], random)
            if not set(str(row.prompt).split()) <= set(lent):
                rows.setdefault(str(row.prompt), row)
        distinct = tuple(rows.values())
        files[f"languages/{language.name}/train"] = distinct[size.tests :]
        files[f"languages/{language.name}/test"] = distinct[: size.tests]
    return files
