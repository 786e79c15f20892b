"""Decides about prompts, once each: whether one is flagged, and which of its tokens are corrupted.

What is decided does not depend on the corruption or its strength, so that guards which differ in these share their decisions.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from expunge.guarding.embedding_corruption.gate import Scores
from expunge.guarding.embedding_corruption.selection import Span, all_but_last, overlapping, token_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEMBERED = 2**16
"""Number of prompts whose decisions are cached."""


class Finds(Protocol):
    """Interface to what finds the texts whose tokens are corrupted."""

    def spans(self, text: str) -> list[Span]:
        """Returns half-open character spans."""
        ...


@dataclass(frozen=True)
class Decision:
    """The gate's decision about a prompt."""

    flagged: bool
    chosen: tuple[int, ...]
    """Tokens to corrupt, counted without padding; empty if the prompt was not flagged, or has one token only."""
    key: int
    """A hash of the prompt's tokens."""


class Judge:
    """The decisions of one gate, with a cache."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", scores: Scores, threshold: float, finder: Finds | None) -> None:
        """finder: finds the texts whose tokens are corrupted; None for all tokens but the last"""
        self.scores, self.threshold = scores, threshold
        self._tokenizer, self._finder = tokenizer, finder
        self._decided: dict[tuple[int, ...], Decision] = {}

    def decision(self, ids: tuple[int, ...]) -> Decision:
        """Decides about the prompt of these tokens."""
        if ids not in self._decided:
            if len(self._decided) >= REMEMBERED:
                self._decided.clear()
            self._decided[ids] = self._decide(ids)
        return self._decided[ids]

    def _decide(self, ids: tuple[int, ...]) -> Decision:
        score = self.scores.of(str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)))
        key = int.from_bytes(hashlib.sha256(repr(ids).encode()).digest()[:7], "big")
        if score <= self.threshold:
            return Decision(False, (), key)
        chosen: list[int] = []
        if self._finder is not None:
            text, spans = token_spans(ids, self._tokenizer)
            chosen = overlapping(spans, self._finder.spans(text))
        return Decision(True, tuple(chosen or all_but_last(len(ids))), key)
