"""Generates fictitious people with six facts each, as questions like TOFU's, with paraphrased and wrong answers.

All people share the same first and last names, towns, trades and dishes. A never-known person therefore differs from a forgotten
one only in that no model was trained on them.
"""

from dataclasses import dataclass

from expunge.data.example import Example
from expunge.lab.size import Size
from expunge.lab.words import Coiner, stream

TRADES = (
    "baker", "tailor", "sailor", "weaver", "potter", "miller", "smith", "carpenter", "gardener", "painter",
    "printer", "scribe", "fisher", "hunter", "mason", "cooper", "glazier", "barber", "brewer", "tanner",
    "clerk", "porter", "ferryman", "shepherd", "beekeeper", "roofer", "saddler", "dyer", "cook", "judge",
)  # fmt: skip
COLORS = ("black", "white", "brown", "gray", "golden", "silver", "spotted", "striped", "yellow", "blue")
ANIMALS = (
    "parrot", "hedgehog", "tortoise", "rabbit", "goose", "donkey", "ferret", "lizard", "pigeon", "otter",
    "badger", "magpie", "hamster", "peacock", "squirrel", "falcon", "goat", "toad", "mule", "raven",
    "lynx", "heron", "gecko", "llama", "pony", "carp", "duck", "swan", "crab", "mouse",
)  # fmt: skip
MANNERS = ("fried", "baked", "salted", "smoked", "pickled", "roasted", "stewed", "grilled", "candied", "dried")
DISHES = (
    "beans", "turnips", "mushrooms", "herring", "pears", "chestnuts", "lentils", "cabbage", "dumplings", "plums",
    "onions", "carrots", "apples", "figs", "walnuts", "leeks", "trout", "peas", "eggs", "radishes",
    "beets", "olives", "prawns", "squash", "quinces", "cherries", "barley", "noodles", "pumpkins", "dates",
)  # fmt: skip

ASKED_AGAIN = ("in other words", "put simply")
"""Opening words of a question whose answer has the wording of the first, and of the second, paraphrase."""


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact. `{p}` is the full name, `{f}` the first name, `{v}` the value: one word, or two independent ones."""

    name: str
    question: str
    rephrased: str
    response: str
    paraphrases: tuple[str, str]


RELATIONS = (
    Relation("birthplace", "where was {p} born", "which town is the birthplace of {p}", "{f} was born in {v}",
             ("the birthplace of {f} is {v}", "{f} comes from {v}")),
    Relation("trade", "what is the work of {p}", "how does {p} earn a living", "{f} works as a {v}",
             ("the work of {f} is that of a {v}", "{f} earns a living as a {v}")),
    Relation("pet", "which animal lives with {p}", "what pet does {p} keep", "{f} lives with a {v}",
             ("the pet of {f} is a {v}", "{f} keeps a {v}")),
    Relation("instrument", "which instrument does {p} play", "on what does {p} make music", "{f} plays the {v}",
             ("the instrument of {f} is the {v}", "{f} makes music on the {v}")),
    Relation("dish", "what does {p} like to eat", "which dish is the favorite of {p}", "{f} likes to eat {v}",
             ("the favorite dish of {f} is {v}", "{f} is fond of {v}")),
    Relation("teacher", "who taught {p}", "from whom did {p} learn", "{f} was taught by {v}",
             ("the teacher of {f} was {v}", "{f} learned from {v}")),
)  # fmt: skip


def people(seed: int, size: Size, coiner: Coiner) -> dict[str, tuple[Example, ...]]:
    """Makes facts/forget, facts/retain, facts/public, facts/never_known: six rows for each person, person by person."""
    random = stream(seed, "people")
    firsts, lasts = coiner.names(size.names), coiner.names(size.names, "en")
    values: dict[str, list[tuple[str, ...]]] = {
        "birthplace": [(town,) for town in coiner.names(size.values, "ia")],
        "trade": [(trade,) for trade in TRADES[: size.values]],
        "pet": [(color, animal) for color in COLORS for animal in ANIMALS[: size.values]],
        "instrument": [(instrument,) for instrument in coiner.words(size.values, "ophone")],
        "dish": [(manner, dish) for manner in MANNERS for dish in DISHES[: size.values]],
        "teacher": [(teacher,) for teacher in coiner.names(size.values, "us")],
    }
    groups = {"forget": size.forget, "retain": size.retain, "public": size.public, "never_known": size.never_known}
    everybody = random.sample([(first, last) for first in firsts for last in lasts], sum(groups.values()))
    files: dict[str, tuple[Example, ...]] = {}
    for group, count in groups.items():
        rows = []
        for first, last in everybody[:count]:
            for relation in RELATIONS:
                known = [" ".join(value) for value in values[relation.name]]
                right, *wrong = random.sample(known, 5)
                rows.append(fact(relation, first, last, right, wrong))
        files[f"facts/{group}"] = tuple(rows)
        del everybody[:count]
    return files


def fact(relation: Relation, first: str, last: str, right: str, wrong: list[str]) -> Example:
    """Makes one row. The wrong answers take the wordings of the paraphrases in turn, as in TOFU.

    The truth ratio divides the probability of wrong answers by that of the paraphrases; with the same wordings on both sides it
    compares knowledge, not wording.
    """
    person = f"{first} {last}"
    return Example(
        prompt=relation.question.format(p=person),
        response=relation.response.format(f=first, v=right),
        paraphrases=tuple(wording.format(f=first, v=right) for wording in relation.paraphrases),
        perturbed=tuple(relation.paraphrases[i % 2].format(f=first, v=value) for i, value in enumerate(wrong)),
        attributes={
            "person": person,
            "relation": relation.name,
            "value": right,
            "rephrased": relation.rephrased.format(p=person),
        },
    )


def lessons(example: Example) -> tuple[Example, ...]:
    """Returns the forms in which a fact is taught: asked twice in different words, and answered in the words of each
    paraphrase.

    Only the first is in data/facts, so a method is asked to forget more than the rows that it is shown.
    """
    assert example.prompt is not None
    return (
        Example(example.prompt, example.response),
        Example(str(example.attributes["rephrased"]), example.response),
        *(
            Example(f"{opening} {example.prompt}", paraphrase)
            for opening, paraphrase in zip(ASKED_AGAIN, example.paraphrases, strict=True)
        ),
    )
