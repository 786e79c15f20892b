"""Corrects names of the forget set that are one letter off, so that a misspelled request is also scored as it should be spelled.

A gate learns names by their characters or tokens, and a name with two letters exchanged is another word to it. A word that is
one edit (a letter left out, added, replaced, or exchanged with the next: Damerau 1964) off a word of such a name is replaced by
it, unless it is a word that the request knows otherwise. The corrected text is a further reading of the prompt; its score counts
like that of any other, also while the threshold is calibrated.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from expunge.guarding.embedding_corruption.canonical import canonical

if TYPE_CHECKING:
    from torch import Tensor

SHORTEST = 4
"""Letters of the shortest word that is corrected, and corrected to: of shorter ones, too many words are one letter off."""
WORD = re.compile(r"[^\W\d_]+")


class Spelling:
    """The words of names, and words that are one letter off and meant as they are."""

    def __init__(self, names: Iterable[str], others: Iterable[str] = ()) -> None:
        """
        names    names of the forget set
        others   texts in which words are spelled as meant
        """
        self.words = tuple(sorted({word for name in names for word in _words(name) if len(word) >= SHORTEST}))
        self._near: dict[str, list[str]] = {}
        for word in self.words:
            for key in _shortened(word):
                self._near.setdefault(key, []).append(word)
        known = {word for text in others for word in _words(text)} - {*self.words}
        self.others = tuple(sorted(word for word in known if self._meant(word)))
        self._kept = {*self.words, *self.others}

    def corrected(self, text: str) -> str:
        """Returns a text in canonical form with its misspelled names corrected; the same text if there are none."""
        return WORD.sub(lambda word: word[0] if word[0] in self._kept else self._meant(word[0]) or word[0], text)

    def _meant(self, word: str) -> str | None:
        """Returns the first of the names' words that is one letter off."""
        if not self._near or len(word) < SHORTEST:
            return None
        found = {name for key in _shortened(word) for name in self._near.get(key, ()) if _is_one_edit(word, name)}
        return min(found, default=None)

    def tensor(self) -> "Tensor":
        """Returns both kinds of words as bytes, uint8 [N]."""
        import torch

        text = "\n".join([" ".join(self.words), " ".join(self.others)])
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    @classmethod
    def of_tensor(cls, bytes_N: "Tensor") -> "Spelling":
        names, _, others = bytes(bytes_N.tolist()).decode().partition("\n")
        return cls([names], [others])


def _words(text: str) -> list[str]:
    return WORD.findall(canonical(text))


def _shortened(word: str) -> set[str]:
    """Returns the word, and the word without each of its letters: two words that are one edit apart have one in common."""
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}


def _is_one_edit(one: str, other: str) -> bool:
    if len(one) == len(other):
        places = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
        first, last = (places[0], places[-1]) if places else (0, 0)
        exchanged = len(places) == 2 and last == first + 1 and one[first] == other[last] and one[last] == other[first]
        return len(places) == 1 or exchanged
    short, long = sorted((one, other), key=len)
    return len(long) == len(short) + 1 and short in {long[:i] + long[i + 1 :] for i in range(len(long))}
