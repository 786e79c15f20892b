"""Guesses the next tokens of answers from what prompts and answers of the same batch say after the same tokens.

Answers of one model to questions of one kind repeat each other, and themselves. A guess costs little, and the model reads it in
the same pass as the token before it: where it would have written the same, that pass is saved. What is written is always what the
model itself finds most probable.
"""

from collections.abc import Sequence
from math import log

from torch import nn

from expunge.models.limits import text_config

LONG, SHORT = 3, 2
"""Numbers of tokens that are looked up: the last three, else the last two."""
MOST = 3
"""Most tokens that are guessed at a time."""
FORGET = 0.7
"""Weight of earlier guesses in the share of right ones."""
BEGIN, HIGHEST = 0.6, 0.98
"""Share of right guesses assumed at first, and the highest that is ever assumed."""
PRODUCTS, HEAD = 3e10, 3e-6
"""Floating-point operations of a CPU core in a second, and its seconds for one head of attention of a row; both roughly."""


class Drafts:
    """Remembers which token came last after which tokens."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}

    def add(self, ids: Sequence[int], start: int = 1) -> None:
        """Remembers the tokens from `start` on, each after those before it."""
        for i in range(start, len(ids)):
            if i >= SHORT:
                self._next[tuple(ids[i - SHORT : i])] = ids[i]
            if i >= LONG:
                self._next[tuple(ids[i - LONG : i])] = ids[i]

    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        """Returns at most so many tokens that may follow."""
        tail, found = tuple(ids[-LONG:]), list[int]()
        while len(found) < most:
            token = self._next.get(tail)
            if token is None:
                token = self._next.get(tail[-SHORT:])
            if token is None:
                break
            found.append(token)
            tail = (*tail[1 - LONG :], token)
        return found


class Trust:
    """How often guesses for one answer were right, and how many are worth reading."""

    def __init__(self, cost: float) -> None:
        """cost: of reading one more token in a pass, as a share of a pass that reads one token (`share`)"""
        self.cost, self.right = cost, BEGIN

    def count(self) -> int:
        """Returns how many tokens to guess: as long as all of them are right more often than they cost."""
        return 0 if self.right <= self.cost else min(MOST, int(log(self.cost) / log(self.right)))

    def learn(self, right: bool, taken: int) -> None:
        """right: whether the first guess was right; taken: how many guesses were read and right"""
        self.right = self.right * FORGET + (1 - FORGET) * right
        self.right = min(HIGHEST, 1 - (1 - self.right) * FORGET ** max(0, taken - 1))


def share(model: nn.Module) -> float:
    """Estimates the share of one token in what a row costs per pass: its products, against those and a row's attention. Near 1
    for a large model, which then reads next to no guesses."""
    config = text_config(model)
    token = 2 * sum(weight.numel() for weight in model.parameters()) / PRODUCTS
    row = HEAD * config.num_hidden_layers * config.num_attention_heads
    return float((2 * token) / (2 * token + row))
