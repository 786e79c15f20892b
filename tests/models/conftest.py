"""Batches for the tests of models: rows of unlike length, with labels on the second half of each."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch

from expunge.data.encode import Encoded, Tokens, collate

ROWS = [
    Encoded((1, 9, 30, 31, 12, 40, 41, 17, 52, 2), 5, True),
    Encoded((1, 22, 8, 60, 2), 2, True),
    Encoded((1, 33, 14, 71, 25, 26, 64, 2), 4, True),
]


@pytest.fixture
def batch() -> Callable[..., Tokens]:
    """`batch(side, extra)`: three rows of 10, 5 and 8 tokens, padded on one side to the longest plus `extra`."""

    def make(side: Literal["right", "left"] = "right", extra: int = 0, rows: list[Encoded] = ROWS, pad_id: int = 0) -> Tokens:
        tokens = collate(rows, pad_id, side)
        shape = (tokens.labels_BT.shape[0], extra)
        parts = [
            (tokens.input_ids_BT, torch.full(shape, pad_id)),
            (tokens.attention_mask_BT, torch.zeros(shape, dtype=torch.int64)),
            (tokens.labels_BT, torch.full(shape, -100)),
        ]
        return Tokens(*(torch.cat(part if side == "right" else part[::-1], dim=1) for part in parts))

    return make


@pytest.fixture
def single_rows(batch: Callable[..., Tokens]) -> list[Tokens]:
    """The same three rows, each alone and without any padding."""
    return [batch(rows=[row]) for row in ROWS]
