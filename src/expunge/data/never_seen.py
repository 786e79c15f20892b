"""Makes rows that the model never saw by replacing the names in the rows that it is to forget.

Their answer probability estimates that of a model that never learned the forget rows. Users rarely have such rows, but the same
questions about names that do not exist serve as such: the model knows only the form of their answers.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from expunge.data.example import Example

WORD = re.compile(r"[^\W\d_][\w'’-]*")
LEAST_SHARE = 0.5
"""Smallest share of rows that must contain a name; with fewer, no rows are made."""
TRIES = 50

Name = tuple[str, ...]
"""The words of a name: `("Mira", "Holt")`."""


def never_seen(rows: Sequence[Example], seed: int = 0) -> tuple[Example, ...]:
    """Returns the prompted rows with other names in prompt, response and paraphrases; empty if too few rows contain a name.

    A name is a run of capitalized words in a prompt. A name of several words gets each word from another row's name, so that
    every word is known to the model, but the whole name is new; in a single word, the halves are swapped. Rows without a name
    in the prompt are left out. The same rows and seed give the same names.
    """
    prompted = [row for row in rows if row.prompt is not None]
    inside = _words_inside(prompted)
    found = [_names(str(row.prompt), inside) for row in prompted]
    known = {name for names in found for name in names}
    if not prompted or sum(map(bool, found)) < LEAST_SHARE * len(prompted):
        return ()
    stream = random.Random(f"never seen/{seed}")
    other: dict[Name, Name] = {}
    for name in sorted(known):
        made = _other_name(name, sorted(known), known | set(other.values()), stream)
        if made is not None:
            other[name] = made
    made_rows = []
    for row, names in zip(prompted, found, strict=True):
        words = {old: new for name in names if name in other for old, new in zip(name, other[name], strict=True) if old != new}
        if words:
            made_rows.append(_renamed(row, words))
    return tuple(made_rows)


def _words_inside(rows: Sequence[Example]) -> frozenset[str]:
    """Returns capitalized words that occur elsewhere than at the beginning of a sentence, where every word is capitalized."""
    texts = [text for row in rows for text in (str(row.prompt), row.response)]
    return frozenset(
        word.group()
        for text in texts
        for word in WORD.finditer(text)
        if word.group()[0].isupper() and not _begins(text, word.start())
    )


def _begins(text: str, place: int) -> bool:
    before = text[:place].rstrip(" \t\n\"'“‘(¿¡")
    return not before or before[-1] in ".!?:;"


def _names(prompt: str, inside: frozenset[str]) -> tuple[Name, ...]:
    words = [w for w in WORD.finditer(prompt) if w.group()[0].isupper() and w.group() in inside and w.group() != "I"]
    runs: list[list[re.Match[str]]] = []
    for word in words:
        if runs and prompt[runs[-1][-1].end() : word.start()] == " ":
            runs[-1].append(word)
        else:
            runs.append([word])
    return tuple(tuple(_bare(word.group()) for word in run) for run in runs)


def _bare(word: str) -> str:
    return re.sub(r"['’]s?$", "", word)


def _other_name(name: Name, others: Sequence[Name], taken: set[Name], stream: random.Random) -> Name | None:
    """Returns a new name with the same number of words; None if none was found.

    Each word comes from the same position of another name. If the rows have no such names, the halves of the name's own words are
    swapped: Mira Holt -> Mirlt Hora.
    """
    pools = [sorted({other[i] for other in others if len(other) == len(name)} - {name[i]}) for i in range(len(name))]
    if len(name) > 1 and all(pools):
        for _ in range(TRIES):
            made = tuple(map(stream.choice, pools))
            if made not in taken:
                return made
    halves = [(word[: (len(word) + 1) // 2], word[(len(word) + 1) // 2 :]) for word in name]
    made = tuple(begin + halves[(i + 1) % len(halves)][1] for i, (begin, _) in enumerate(halves))
    if len(name) == 1:
        made = ((halves[0][1] + halves[0][0]).capitalize(),)
    return None if made in taken else made


def _renamed(row: Example, words: dict[str, str]) -> Example:
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(words, key=len, reverse=True))) + r")\b")

    def turn(text: str) -> str:
        return pattern.sub(lambda match: words[match.group()], text)

    return replace(
        row,
        prompt=turn(str(row.prompt)),
        response=turn(row.response),
        paraphrases=tuple(map(turn, row.paraphrases)),
        perturbed=(),
    )
