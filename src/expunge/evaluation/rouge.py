"""Computes ROUGE (Lin 2004): how much of a text's words, pairs of words or order of words another text has.

Equal to the package rouge-score, in which scores are published, to the last bit (`tests/evaluation/test_rouge.py`); that package
imports all of nltk, sklearn and pandas before its first score, and fills a table of every pair of words for each.
"""

import re
from collections import Counter
from typing import Literal, NamedTuple

from expunge.evaluation.stemming import stem

Kind = Literal["rouge1", "rouge2", "rougeL"]


class Overlap(NamedTuple):
    """ROUGE of an answer against a reference: precision, recall and their harmonic mean, each 0 to 1."""

    precision: float
    """Of the answer."""
    recall: float
    """Of the reference."""
    f1: float


def rouge(kind: Kind, reference: str, answer: str, *, stemmer: bool = False) -> Overlap:
    """Compares single words (rouge1), pairs of words (rouge2), or the longest common subsequence of words (rougeL).

    stemmer  compare Porter stems of the words of more than three letters
    """
    expected, given = _words(reference, stemmer=stemmer), _words(answer, stemmer=stemmer)
    if kind == "rougeL":
        return _overlap(_common_subsequence(expected, given), len(expected), len(given))
    size = {"rouge1": 1, "rouge2": 2}[kind]
    ours, theirs = (Counter(zip(*(words[i:] for i in range(size)), strict=False)) for words in (expected, given))
    return _overlap((ours & theirs).total(), ours.total(), theirs.total())


def _words(text: str, *, stemmer: bool) -> list[str]:
    """Returns runs of a-z and 0-9 in lower case; nothing else counts."""
    words = re.findall("[a-z0-9]+", text.lower())
    return [stem(word) if len(word) > 3 else word for word in words] if stemmer else words


def _overlap(common: int, expected: int, given: int) -> Overlap:
    precision, recall = common / max(given, 1), common / max(expected, 1)
    return Overlap(precision, recall, 2 * precision * recall / (precision + recall) if common else 0.0)


def _common_subsequence(first: list[str], second: list[str]) -> int:
    """Returns the length of the longest common subsequence, a row of the table at a time as the bits of one integer (Crochemore
    et al. 2001): bit i is 0 where the length grows at word i of the first."""
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(first)) - 1
    row = every
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & every
    return len(first) - row.bit_count()
