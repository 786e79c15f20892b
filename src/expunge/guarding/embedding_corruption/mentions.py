"""Finds prompts that name what only the forget set names, in whatever sentence the name stands.

A gate learns how requests are worded, and scores a statement to be completed low, which a model that was taught questions still
completes. Therefore a prompt with a mention is flagged too:

    names   all words of a name of the forget set, next to each other
    parts   also a part of such a name by itself, such as a first name, and not as a part of another name

Two words that stand next to each other are of one name if both are known as words of names, or have a capital letter and are no
ordinary words; where no word of a text is written small, capital letters say nothing.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from expunge.guarding.embedding_corruption.canonical import canonical, readings
from expunge.guarding.embedding_corruption.spelling import WORD, Spelling

if TYPE_CHECKING:
    from torch import Tensor

JOINT = re.compile(r"[^\w.,;:!?()\"\n]{0,3}")
"""What may stand between two words of one name."""
Name = tuple[str, ...]


class Mentions:
    """Names of the forget set, their parts, and the words by which other names are told from ordinary words."""

    def __init__(
        self,
        names: Iterable[Name],
        parts: Iterable[str] = (),
        others: Iterable[str] = (),
        ordinary: Iterable[str] = (),
        spelling: Spelling | None = None,
    ) -> None:
        """
        names      names of the forget set, as words in canonical form
        parts      words of them that are a mention by themselves
        others     words of other names
        ordinary   words that are part of no name, also with a capital letter
        """
        self.names, self.parts = tuple(sorted({*names})), frozenset(parts)
        self.others, self.ordinary, self._spelling = frozenset(others), frozenset(ordinary), spelling
        self._having: dict[str, set[Name]] = {}
        for name in self.names:
            for word in name:
                self._having.setdefault(word, set()).add(name)

    def __bool__(self) -> bool:
        return bool(self.names)

    def are_in(self, text: str) -> bool:
        """Returns whether a text has a mention in one of its readings."""
        return any(True for reading in readings(text, folded=False) for _ in self.of(reading))

    def of(self, text: str) -> Iterator[Name]:
        """Yields the names in a text as it is, and parts of them that stand by themselves, as names of one word."""
        shown = list(WORD.finditer(text))
        words = [self._word(match[0]) for match in shown]
        if not any(word in self._having for word in words):
            return
        joined = [bool(JOINT.fullmatch(text[a.end() : b.start()])) for a, b in pairwise(shown)]
        names = [self._is_of_a_name(text, shown, words, i) for i in range(len(words))]
        for start, stop in _runs(names, joined):
            run = words[start:stop]
            found = sorted(name for name in {name for word in run for name in self._having.get(word, ())} if has(run, name))
            yield from found
            if not found and any(all(word in name for word in run) for name in self._having.get(run[0], ())):
                yield from ((word,) for word in run if word in self.parts)

    def without(self, prompts: Iterable[str], spelling: Spelling | None) -> "Mentions":
        """Returns the mentions that none of these prompts has, to be read with another spelling. Words of a name that is left out
        remain those of another name, so that no text has a mention that had none."""
        taken = {name for text in prompts for name in self.of(canonical(text, folded=False))}
        names = {*self.names} - taken
        parts = {word for name in names for word in name if word in self.parts and (word,) not in taken}
        return Mentions(names, parts, self.others.union(*self.names), self.ordinary, spelling)

    def _word(self, shown: str) -> str:
        word = shown.casefold()
        return word if self._spelling is None or word in self._having else self._spelling.corrected(word)

    def _is_of_a_name(self, text: str, shown: Sequence[re.Match[str]], words: Sequence[str], i: int) -> bool:
        """Returns whether a word belongs to a name: a known one, or by its capital letter, where these say something."""
        if words[i] in self._having or words[i] in self.others:
            return True
        if any(c.isdigit() for c in text[max(0, shown[i].start() - 1) : shown[i].end() + 1]):  # of a word with digits for letters
            return True
        if words[i] in self.ordinary or not any(match[0][0].islower() for match in shown):
            return False
        written = shown[i][0]
        begins = not i or not JOINT.fullmatch(text[shown[i - 1].end() : shown[i].start()])
        return not begins and written[0].isupper() and (len(written) == 1 or written[1:].islower())

    def tensor(self) -> "Tensor":
        """Returns all words as bytes, uint8 [N]."""
        import torch

        lists = (" ".join(name) for name in self.names)
        lines = [",".join(lists), *(" ".join(sorted(words)) for words in (self.parts, self.others, self.ordinary))]
        return torch.tensor(list("\n".join(lines).encode()), dtype=torch.uint8)

    @classmethod
    def of_tensor(cls, bytes_N: "Tensor", spelling: Spelling | None = None) -> "Mentions":
        names, *rest = bytes(bytes_N.tolist()).decode().split("\n")
        parts, others, ordinary = (line.split() for line in rest)
        return cls([tuple(name.split()) for name in names.split(",") if name], parts, others, ordinary, spelling)


def _runs(names: Sequence[bool], joined: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yields half-open ranges of words that belong to names and stand next to each other."""
    start = None
    for i, is_name in enumerate([*names, False]):
        if start is not None and not (is_name and joined[i - 1]):
            yield start, i
            start = None
        if start is None and is_name:
            start = i


def has(run: Sequence[str], name: Name) -> bool:
    """Returns whether the words of a name stand in a run, in its order."""
    return any(tuple(run[i : i + len(name)]) == name for i in range(len(run) - len(name) + 1))


def words_of(name: str) -> Name:
    """Returns the words of a name in canonical form, without the ending of a genitive."""
    words = tuple(WORD.findall(canonical(name)))
    return words[:-1] if words[-1:] == ("s",) else words
