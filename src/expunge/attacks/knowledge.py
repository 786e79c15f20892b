"""Measures how much of a fact a text reveals: words of the answer that neither the prompt nor most other answers contain.

A word of the prompt in the answer proves nothing (an echo), and a word that many answers share belongs to the form of an answer,
not to the fact.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from expunge.data.encode import decoded
from expunge.data.example import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Floats = NDArray[np.float64]

SHARED = 0.1
"""A word in more than this share of the answers belongs to their form."""
SUBJECTS = ("person", "subject", "author", "topic", "group")
"""Attributes that name the subject of a fact; the first present one is used."""
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case, in order, without punctuation."""
    return _WORD.findall(text.lower())


def form_words(examples: Sequence[Example]) -> frozenset[str]:
    """Returns words in more than a tenth of the responses, and in at least three of them."""
    counts = Counter(word for example in examples for word in set(words(example.response)))
    return frozenset(word for word, count in counts.items() if count > max(2, SHARED * len(examples)))


@dataclass(frozen=True)
class Facts:
    """Questions with their answers, all of one kind."""

    examples: tuple[Example, ...]
    form: frozenset[str]
    """Words that belong to the form of the answers."""

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def questions(self) -> tuple[str, ...]:
        return tuple(example.prompt or "" for example in self.examples)

    def some(self, chosen: Sequence[int]) -> "Facts":
        """Returns the facts at these indices, with the same form words."""
        return Facts(tuple(self.examples[i] for i in chosen), self.form)

    def words(self, i: int, shown: str) -> tuple[str, ...]:
        """Returns the words of answer i that count if the model was given `shown`."""
        hidden = set(words(shown)) | self.form
        return tuple(word for word in dict.fromkeys(words(self.examples[i].response)) if word not in hidden)

    def subject(self, i: int) -> str | None:
        """Returns the subject of a fact, if the data names it."""
        attributes = self.examples[i].attributes
        found = next((attributes[name] for name in SUBJECTS if name in attributes), None)
        return None if found is None else str(found)

    def clusters(self) -> NDArray[np.intp]:
        """Returns [facts], the index of each fact's subject: facts of one subject are not independent."""
        names = [self.subject(i) or f"fact {i}" for i in range(len(self))]
        return np.unique(np.array(names), return_inverse=True)[1]

    def opening(self, i: int) -> str:
        """Returns answer i up to its first word that counts: what an attacker can write without knowing the fact."""
        response = self.examples[i].response
        mine = self.words(i, self.questions[i])
        at = next((found.start() for found in _WORD.finditer(response) if found[0].lower() in mine), 0)
        return response[:at].rstrip()

    def recall(self, i: int, shown: str, text: str) -> float:
        """Computes the share of the words that count that occur in `text`; NaN if there are none."""
        mine = self.words(i, shown)
        return float(np.mean([word in set(words(text)) for word in mine])) if mine else float("nan")


def counted_tokens(tokenizer: "PreTrainedTokenizerBase", answer: Sequence[int], mine: Collection[str]) -> NDArray[np.bool_]:
    """Returns [tokens], whether each token of an answer is part of one of the words `mine`.

    Computed from the text that the tokens give one after the other, so that it works for words of several tokens.
    """
    ends = [len(decoded(tokenizer, answer[: k + 1])) for k in range(len(answer))]
    text = decoded(tokenizer, answer)
    spans = [found.span() for found in _WORD.finditer(text) if found[0].lower() in mine]
    begins = [0, *ends[:-1]]
    return np.array(
        [any(a < stop and start < b for start, stop in spans) and b > a for a, b in zip(begins, ends, strict=True)],
        dtype=np.bool_,
    )


def halves(facts: Facts) -> list[tuple[list[int], list[int]]]:
    """Yields (shown, scored), twice: what is optimized on one half of the facts is scored on the other."""
    even, odd = list(range(0, len(facts), 2)), list(range(1, len(facts), 2))
    return [(odd, even), (even, odd)] if odd else []
