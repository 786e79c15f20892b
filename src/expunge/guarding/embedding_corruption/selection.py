"""Selects the tokens of a flagged prompt that are corrupted: all but the last, or those of names and given texts.

Names are found in the text, and a token is chosen if its characters overlap a name (spans are half-open, and special tokens have
none). If no token is chosen, all but the last are, so that every flagged prompt is corrupted.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from expunge.data.example import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


class Finder:
    """Finds many texts in one pass over a text, ignoring case (Aho and Corasick 1975). Only whole words count."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._back, self._lengths = [0], [list[int]()]
        for text in dict.fromkeys(t.casefold() for t in texts if t.strip()):
            self._add(text)
        self._link()

    def spans(self, text: str) -> list[Span]:
        """Returns half-open character spans of every occurrence."""
        folded = text.casefold()
        if len(folded) != len(text):  # a letter that folds into two: look at the text as it is
            folded = text.lower() if len(text.lower()) == len(text) else text
        found, node = [], 0
        for stop, letter in enumerate(folded, start=1):
            while node and letter not in self._next[node]:
                node = self._back[node]
            node = self._next[node].get(letter, 0)
            found += [(stop - n, stop) for n in self._lengths[node] if _is_word(folded, stop - n, stop)]
        return found

    def _add(self, text: str) -> None:
        node = 0
        for letter in text:
            if letter not in self._next[node]:
                self._next[node][letter] = len(self._next)
                self._next.append({})
                self._back.append(0)
                self._lengths.append([])
            node = self._next[node][letter]
        self._lengths[node].append(len(text))

    def _link(self) -> None:
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            for letter, child in self._next[node].items():
                queue.append(child)
                back = self._back[node]
                while back and letter not in self._next[back]:
                    back = self._back[back]
                self._back[child] = self._next[back].get(letter, 0)
                self._lengths[child] += self._lengths[self._back[child]]


def own_entities(forget: Sequence[Example], retain: Sequence[Example]) -> list[str]:
    """Returns names of the forget set: values of its attributes that occur in its prompts, and runs of capitalized words that
    no retain prompt has."""
    kept = "\n".join(f"{e.prompt or ''}\n{e.response}" for e in retain).casefold()
    found: dict[str, None] = {}
    for example in forget:
        asked = example.prompt if example.prompt is not None else example.response
        named = [str(value) for value in (example.attributes or {}).values() if str(value).casefold() in asked.casefold()]
        found |= dict.fromkeys(named)
        found |= dict.fromkeys(name for name in _capitalized(asked) if name.casefold() not in kept)
    return [name for name in found if len(name) > 1]


def token_spans(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> tuple[str, list[Span]]:
    """Returns the text of the tokens without special ones, and the characters of each token; (0, 0) for a special token."""
    special, text, spans = set(tokenizer.all_special_ids), "", []
    plain: list[int] = []
    for token in ids:
        if token in special:
            spans.append((0, 0))
            continue
        plain.append(token)
        longer = str(tokenizer.decode(plain, clean_up_tokenization_spaces=False))
        spans.append((min(len(text), len(longer)), len(longer)))
        text = longer
    return text, spans


def overlapping(tokens: Sequence[Span], marked: Sequence[Span]) -> list[int]:
    """Returns the indices of the tokens that share a character with a marked span."""
    return [i for i, (start, stop) in enumerate(tokens) if any(s < stop and e > start for s, e in marked)]


def all_but_last(count: int) -> list[int]:
    return list(range(count - 1))


def _capitalized(text: str) -> list[str]:
    """Returns runs of words that begin with a capital letter, without the first word of the text."""
    runs: list[list[str]] = [[]]
    for i, word in enumerate(text.replace("?", " ? ").replace(",", " , ").split()):
        bare = word.strip(".,;:!?\"'()").removesuffix("'s")
        if bare[:1].isupper() and i > 0:
            runs[-1].append(bare)
        else:
            runs.append([])
    return [" ".join(run) for run in runs if run]


def _is_word(text: str, start: int, stop: int) -> bool:
    return not (text[start - 1 : start].isalnum() and start > 0) and not text[stop : stop + 1].isalnum()
