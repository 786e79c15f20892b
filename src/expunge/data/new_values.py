"""Replaces the words that carry a fact by words that are new as answers to their question, in rows that alone have that fact.

Where one question is asked about several names, its answers differ in few words: these are their values. A model that has learned
an answer finds its value more probable, under any name, than one that it never met in answers to this question. Rows never seen
have values of both kinds. The share of new ones is estimated by leaving each row out: it is that of the rows whose value no other
row has (as Good and Turing estimate the probability of species not observed yet). The new ones are values of other questions,
which are words of the language that the model never met here. If there is one question only, they are made of two values.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from expunge.data.example import Example

WORD = re.compile(r"\w[\w'’-]*")
LEAST_NAMES = 3
"""Smallest number of names about which a question is asked whose answers have values."""
MOST_WORDS = 3
"""Largest number of words of a value; an answer that differs from the others in more is a text of its own and stays as it is."""
SHORTEST = 3
"""Characters of the shortest word that is replaced; articles and the like are shorter."""
TRIES = 50

Name = tuple[str, ...]


class _Answer(NamedTuple):
    names: tuple[Name, ...]
    words: frozenset[str]
    """The words that the prompt does not contain."""


def new_values(
    rows: Sequence[Example],
    names: Sequence[tuple[Name, ...]],
    others: Sequence[Example],
    other_names: Sequence[tuple[Name, ...]],
    stream: random.Random,
) -> list[dict[str, str]]:
    """Returns for each row the words of its answer to replace, with the new ones; empty if other rows have its value too.

    names, other_names  the names in each prompt
    others              rows whose values are known as well
    """
    asked: defaultdict[str, list[_Answer]] = defaultdict(list)
    every = [_answer(row, of) for row, of in zip((*rows, *others), (*names, *other_names), strict=True)]
    for question, answer in every:
        asked[question].append(answer)
    values = {question: _values(answers) for question, answers in asked.items()}
    taken = {word for _, answer in every for word in answer.words}
    made = []
    for question, answer in every[: len(rows)]:
        own = answer.words & values[question].keys()
        fits = len(own) <= MOST_WORDS
        alone = [word for word in sorted(own) if fits and values[question][word] <= {answer.names}]
        elsewhere = sorted(
            {word for other, words in values.items() if other != question for word in words} - values[question].keys()
        )
        new = {word: _cased(stream.choice(elsewhere), word) for word in alone} if elsewhere else {}
        new = new or {word: coined(sorted(values[question]), taken, stream) for word in alone}
        made.append({word: other for word, other in new.items() if other})
    return made


def coined(words: Sequence[str], taken: Collection[str], stream: random.Random) -> str:
    """Returns a new word with the beginning of one word and the end of another; empty if none was found."""
    for _ in range(TRIES):
        begin, end = stream.choice(words), stream.choice(words)
        made = begin[: (len(begin) + 1) // 2] + end[(len(end) + 1) // 2 :].lower()
        if made not in taken:
            return made
    return ""


def _cased(word: str, like: str) -> str:
    return (word[0].upper() if like[0].isupper() else word[0].lower()) + word[1:]


def _answer(row: Example, names: tuple[Name, ...]) -> tuple[str, _Answer]:
    """Returns the row's question without its names, and what its answer adds."""
    prompt = str(row.prompt)
    question = prompt
    for name in names:
        question = question.replace(" ".join(name), "_")
    return question, _Answer(names, frozenset(WORD.findall(row.response)) - frozenset(WORD.findall(prompt)))


def _values(answers: Sequence[_Answer]) -> dict[str, set[tuple[Name, ...]]]:
    """Returns the words by which the answers to a question differ, with the names in whose answers they occur."""
    found: defaultdict[str, set[tuple[Name, ...]]] = defaultdict(set)
    if len({answer.names for answer in answers}) < LEAST_NAMES:
        return {}
    common = Counter(word for answer in answers for word in answer.words)
    form = {word for word, count in common.items() if 2 * count >= len(answers)}
    for answer in answers:
        for word in answer.words - form:
            if len(word) >= SHORTEST:
                found[word].add(answer.names)
    return dict(found)
