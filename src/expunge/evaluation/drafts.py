"""Guesses the next tokens of answers from what prompts and answers of the same call say after the same tokens.

Answers of one model to questions of one kind repeat each other, and themselves. A guess costs little, and the model reads it in
the same pass as the token before it: where it would have written the same, that pass is saved. What is written is always what the
model itself finds most probable.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from expunge.models.limits import text_config

LENGTHS = (8, 3, 2)
"""Numbers of tokens that are looked up, the longest first."""
MOST = 3
"""Most tokens that are guessed at a time."""
BEGIN, DOUBT = 0.6, 4
"""Share of right guesses assumed at first, which counts as much as so many guesses."""
REMEMBERED = 2**19
"""Most places that are remembered (about 50 MB); then all are forgotten."""
PRODUCTS, HEAD = 3e10, 3e-6
"""Floating-point operations of a CPU core in a second, and its seconds for one head of attention of a row; both roughly."""


class Guess(NamedTuple):
    """Tokens that may follow a text."""

    tokens: list[int]
    lengths: list[int]
    """Of how many tokens before it each is what followed last."""
    worth: int
    """How many are worth reading; there may be one more, by which is learned how good guesses are."""


class Drafts:
    """Remembers which token came last after which tokens, and how often a guess from so many tokens was right."""

    def __init__(self, cost: float) -> None:
        """cost: of reading one more token in a pass, as a share of a pass that reads one token (`share`)"""
        self.cost = cost
        self._next: dict[int, int] = {}
        """By the hash of the tokens before: two places with the same hash cost a wrong guess, if ever."""
        self._right = {length: [BEGIN * DOUBT, float(DOUBT)] for length in LENGTHS}
        """By number of tokens looked up: right guesses, and all."""

    def add(self, ids: Sequence[int], start: int = 1) -> None:
        """Remembers the tokens from `start` on, each after those before it."""
        if len(self._next) > REMEMBERED:
            self._next.clear()
        for i in range(start, len(ids)):
            for length in LENGTHS:
                if i >= length:
                    self._next[hash(tuple(ids[i - length : i]))] = ids[i]

    def guess(self, ids: Sequence[int], most: int = MOST) -> Guess:
        """Returns what may follow; at most `most` tokens of it are worth reading, as long as all of them are right more often
        than they cost."""
        tail, guess, chance = tuple(ids[-LENGTHS[0] :]), Guess([], [], 0), 1.0
        while len(guess.tokens) < max(1, most):
            found = self._after(tail)
            if found is None:
                break
            token, length = found
            right, read = self._right[length]
            chance *= right / read
            pays = chance > self.cost and guess.worth < most
            if not pays and guess.tokens:
                break
            guess.tokens.append(token)
            guess.lengths.append(length)
            if not pays:
                break
            guess = guess._replace(worth=guess.worth + 1)
            tail = (*tail, token)[-LENGTHS[0] :]
        return guess

    def learn(self, guess: Guess, tokens: Sequence[int]) -> int:
        """Learns from the tokens that the model finds most probable after the text and after each guess that it read; returns
        how many of these were right."""
        right = 0
        for guessed, length, token in zip(guess.tokens, guess.lengths, tokens, strict=False):
            known = self._right[length]
            known[1] += 1
            if guessed != token:
                break
            known[0] += 1
            right += 1
        return min(right, guess.worth)

    def _after(self, tail: tuple[int, ...]) -> tuple[int, int] | None:
        """Returns the token that came last after as many of these tokens as are known, and their number."""
        for length in LENGTHS:
            if len(tail) >= length and (token := self._next.get(hash(tail[len(tail) - length :]))) is not None:
                return token, length
        return None


def share(model: nn.Module) -> float:
    """Estimates the share of one token in what a row costs per pass: its products, against those and a row's attention. Near 1
    for a large model, which then reads next to no guesses."""
    config = text_config(model)
    token = 2 * sum(weight.numel() for weight in model.parameters()) / PRODUCTS
    row = HEAD * config.num_hidden_layers * config.num_attention_heads
    return float((2 * token) / (2 * token + row))
