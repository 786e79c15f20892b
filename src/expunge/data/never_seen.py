"""Makes rows that the model never saw by replacing the names in the rows that it is to forget.

Their answer probability estimates that of a model that never learned the forget rows. Users rarely have such rows, but the same
questions about names that do not exist serve as such: the model knows only the form of their answers.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from expunge.data.example import Example
from expunge.data.new_values import TRIES, coined, new_values

WORD = re.compile(r"[^\W\d_][\w'’-]*")
LEAST_SHARE = 0.5
"""Smallest share of rows that must contain a name; with fewer, no rows are made."""

Name = tuple[str, ...]
"""The words of a name: `("Mira", "Holt")`."""


def never_seen(rows: Sequence[Example], others: Sequence[Example] = (), seed: int = 0) -> tuple[Example, ...]:
    """Returns each prompted row twice, with other names in prompt, response and paraphrases; empty if too few rows have a name.

    others  rows that stay known, such as the retain set

    The mean over all is an estimate between two that are wrong in opposite directions, measured in docs/training.md:

    - names of words that the model would know without `rows`, as far as the old ones were such: a word that `others` have too is
      replaced by another of theirs, any other word by a new one. Answers to these are too probable, since their facts are known.
      If `others` contain no names, each word comes from another row's name, and the halves of a single word are swapped.
    - names of new words alone, with the beginning of one word and the end of another: Fenna, Selva -> Fenva. A small model cannot
      repeat these as well as names of its language, so that answers to these are too improbable.

    A value that no other row has is replaced in both by one that is new to its question (`data/new_values.py`), since it
    was learned in this very row.

    A name is a run of capitalized words in a prompt. Rows without a name in the prompt are left out. The same rows and seed give
    the same names.
    """
    prompted = [row for row in rows if row.prompt is not None]
    found = _names_of(prompted)
    known = sorted({name for names in found for name in names})
    if not prompted or sum(map(bool, found)) < LEAST_SHARE * len(prompted):
        return ()
    kept = [row for row in others if row.prompt is not None]
    kept_names = _names_of(kept)
    beside = sorted({name for names in kept_names for name in names})
    stream = random.Random(f"never seen/{seed}")
    taken = {*known, *beside}
    alike: dict[Name, Name] = {}
    for name in known:
        made = _alike(name, beside, known, taken, stream) if beside else _other_name(name, known, taken, stream)
        if (made := made or _turned(name, taken)) is not None:
            alike[name] = made
            taken.add(made)
    new: dict[Name, Name] = {}
    for name in known:
        if (made := _alike(name, (), [*beside, *known], taken, stream)) is not None:
            new[name] = made
            taken.add(made)
    values = new_values(prompted, found, kept, kept_names, stream)
    return (*_with_names(prompted, found, alike, values), *_with_names(prompted, found, new, values))


def under_other_names(
    rows: Sequence[Example],
    holdout: Sequence[Example] = (),
    others: Sequence[Example] = (),
    count: int = 1,
    seed: int = 0,
    tokens: Callable[[str], int] = lambda word: 1,
) -> list[tuple[Example, ...]]:
    """Returns for each row `count` copies of it with other names; none for a row without a name in its prompt.

    holdout  rows that the model never saw. A name gets one of theirs whose words have as many tokens, in random order, so that
             each name gets another one as long as there are enough; else a new one is made as in `never_seen`; else, if none
             of that size is found, one of theirs with as many words
    others   rows that stay known: their names are not taken
    tokens   number of tokens of a word

    The same name has the same other name in every row.
    """
    prompted = [row for row in rows if row.prompt is not None]
    found = iter(_names_of(prompted))
    names_of = [() if row.prompt is None else next(found) for row in rows]
    known = sorted({name for names in names_of for name in names})
    beside, unseen = (
        sorted({name for names in _names_of([row for row in some if row.prompt is not None]) for name in names} - {*known})
        for some in (others, holdout)
    )
    stream = random.Random(f"other names/{seed}")
    stream.shuffle(known)
    stream.shuffle(unseen)
    taken = {*known, *beside}
    other: list[dict[Name, Name]] = [{} for _ in range(count)]
    drawn: Counter[tuple[int, ...]] = Counter()
    for name in known:
        size = tuple(map(tokens, name))
        fitting = [one for one in unseen if tuple(map(tokens, one)) == size]
        for alike in other:
            made = None if len(fitting) >= count else _of_size(size, name, beside, known, taken, stream, tokens)
            if made is not None:
                alike[name] = made
                taken.add(made)
            elif pool := fitting if len(fitting) >= count else [one for one in unseen if len(one) == len(name)]:
                alike[name] = pool[drawn[size] % len(pool)]
                drawn[size] += 1
            elif (turned := _turned(name, taken)) is not None:
                alike[name] = turned
                taken.add(turned)
    copies = [
        tuple(copy for alike in other for copy in _with_names([row], [names], alike, [{}]))
        for row, names in zip(rows, names_of, strict=True)
    ]
    return [of if len(of) == count else () for of in copies]


def _with_names(
    rows: Sequence[Example],
    found: Sequence[tuple[Name, ...]],
    other: Mapping[Name, Name],
    values: Sequence[Mapping[str, str]],
) -> list[Example]:
    """Returns the rows that have a name in `other`, with the new names, and with other words for their values."""
    made = []
    for row, names, value in zip(rows, found, values, strict=True):
        words = {old: new for name in names if name in other for old, new in zip(name, other[name], strict=True) if old != new}
        if words:
            made.append(_renamed(row, {**value, **words}))
    return made


def _names_of(rows: Sequence[Example]) -> list[tuple[Name, ...]]:
    inside = _words_inside(rows)
    return [_names(str(row.prompt), inside) for row in rows]


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


def _alike(name: Name, beside: Sequence[Name], known: Sequence[Name], taken: set[Name], stream: random.Random) -> Name | None:
    """Returns a new name: words that occur in the names `beside` replaced by others of those, and any other words by new ones."""
    words = {word for other in (*beside, *known) for word in other}
    for _ in range(TRIES):
        made = []
        for i, word in enumerate(name):
            pool = sorted({other[i] for other in beside if len(other) > i})
            every = sorted({*pool, *(other[i] for other in known if len(other) > i)})
            made.append(stream.choice(pool) if word in pool else coined(every, words, stream))
        if tuple(made) not in taken and all(made):
            return tuple(made)
    return None


def _of_size(
    size: tuple[int, ...],
    name: Name,
    beside: Sequence[Name],
    known: Sequence[Name],
    taken: set[Name],
    stream: random.Random,
    tokens: Callable[[str], int],
) -> Name | None:
    """Returns a new name whose words have as many tokens; None if none was found."""
    for _ in range(TRIES):
        made = _alike(name, beside, known, taken, stream)
        if made is None or tuple(map(tokens, made)) == size:
            return made
    return None


def _other_name(name: Name, others: Sequence[Name], taken: set[Name], stream: random.Random) -> Name | None:
    """Returns a new name from words at the same positions of other names; None if none was found."""
    pools = [sorted({other[i] for other in others if len(other) == len(name)} - {name[i]}) for i in range(len(name))]
    if len(name) > 1 and all(pools):
        for _ in range(TRIES):
            made = tuple(map(stream.choice, pools))
            if made not in taken:
                return made
    return None


def _turned(name: Name, taken: set[Name]) -> Name | None:
    """Returns the name with the halves of its words swapped: Mira Holt -> Milt Hora, Quelford -> Fordquel."""
    halves = [(word[: (len(word) + 1) // 2], word[(len(word) + 1) // 2 :]) for word in name]
    made = tuple(begin + halves[(i + 1) % len(halves)][1] for i, (begin, _) in enumerate(halves))
    if len(name) == 1:
        made = ("".join(reversed(halves[0])).capitalize(),)
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
