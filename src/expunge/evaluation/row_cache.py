"""A key-value cache of rows that have their own lengths, without padding, and the two passes that fill it.

Prompts are read in packs (`models.packed_attention`); after that each pass reads a few new tokens of each row. No padding goes
through the layers; attention alone pads, to the most new tokens of a row.

Shape suffixes: B rows, T new tokens of a row, S columns of the cache, N new tokens of all rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from expunge.evaluation.changed_prompts import changed
from expunge.models.attention_blocks import Packed
from expunge.models.attention_steps import Steps, value_columns
from expunge.models.load import causal_model
from expunge.models.logprobs import cached_logits
from expunge.models.packed_attention import packed

Ids = tuple[int, ...]


SPARE = 64
"""Columns that are added to a cache beyond those that a pass needs."""


@dataclass
class Places:
    """Describes where the layers of one cache put new tokens, and what a pass reads of them."""

    row_N: Tensor
    column_N: Tensor
    rows: int
    columns: int
    """Size of the cache."""
    shown: tuple[int, int] | None = None
    """Rows and columns that the pass reads; None where it reads only its own tokens."""


class RowLayer(DynamicLayer):
    """Keys and values of one layer. Empty places hold zeros, since attention multiplies what it hides by zero."""

    def __init__(self, places: Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places = places

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        places = self.places
        heads, width = key_states.shape[1], key_states.shape[-1]
        if value_states.shape[-1] != width:
            raise NotImplementedError("values of another width than their keys are not cached in rows")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys = key_states.new_zeros((0, heads, 0, width))
            self._values = value_states.new_zeros((0, heads, 0, value_columns(width)))
        if self._keys.shape[0] != places.rows or self._keys.shape[2] != places.columns:
            self._keys, self._values = (self._resized(states) for states in (self._keys, self._values))
        self._keys[places.row_N, :, places.column_N] = key_states[0].transpose(0, 1)
        self._values[places.row_N, :, places.column_N, :width] = value_states[0].transpose(0, 1)
        if places.shown is None:
            return key_states, value_states
        rows, columns = places.shown
        return self._keys[:rows, :, :columns], self._values[:rows, :, :columns]

    def _resized(self, states: Tensor) -> Tensor:
        """Returns a copy with as many rows and columns as there are places."""
        rows, columns = min(states.shape[0], self.places.rows), min(states.shape[2], self.places.columns)
        resized = states.new_zeros((self.places.rows, states.shape[1], self.places.columns, states.shape[3]))
        resized[:rows, :, :columns] = states[:rows, :, :columns]
        return resized

    def move(self, sources: Tensor, targets: Tensor, columns: int) -> None:
        """Copies the first columns of some rows to others. (Memory that no row has written is not touched.)"""
        for states in (self._keys[:, :, :columns], self._values[:, :, :columns]):
            states[targets] = states[sources]


class RowCache:
    """The cache of some rows; it grows with them. The rows in use are the first `len(lengths)`."""

    def __init__(self, model: nn.Module, rows: int, columns: int) -> None:
        """
        rows, columns   number of rows that will begin, and most tokens of one at first
        """
        self.model, self.lengths = model, list[int]()
        """Tokens of each row in use that are in the cache."""
        none_N = torch.zeros(0, dtype=torch.long, device=causal_model(model).device)
        self.places = Places(none_N, none_N, rows, columns + SPARE)
        self.cache = Cache(layer_class_to_replicate=partial(RowLayer, self.places))  # type: ignore[arg-type]

    def begin(self, rows: Sequence[Ids], under: Sequence[object] = ()) -> Tensor:
        """Adds rows and reads all their tokens; returns logits [B, V] after the last of each.

        under   how the prompt at the beginning of each row is read (`changed_prompts`); default: as it is
        """
        first, counts = len(self.lengths), [len(row) for row in rows]
        self.places.rows = max(self.places.rows, first + len(rows))
        self.places.columns = max(self.places.columns, *counts)
        ends = torch.tensor(list(accumulate(counts)), device=self.places.row_N.device) - 1
        starts = accumulate(counts[:-1], initial=0)
        with changed(self.model, zip(starts, under, strict=False)):
            found = self._pass(rows, [(first + b, 0) for b in range(len(rows))], ends, Packed(counts, [()] * len(rows)), None)
        self.lengths += counts
        return found

    def go_on(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Reads at least one new token of each row in use; returns logits [N, V] after each. `keep` says how many stay."""
        starts = [(b, length) for b, length in enumerate(self.lengths)]
        device = self.places.row_N.device
        wide = max(length + len(row) for length, row in zip(self.lengths, rows, strict=True))
        if wide > self.places.columns:  # without the rows that are finished
            self.places.rows, self.places.columns = len(rows), wide + SPARE
        row_N = torch.tensor([b for b, row in enumerate(rows) for _ in row], device=device)
        depth_N = torch.tensor([t for row in rows for t in range(len(row))], device=device)
        layout = Steps(row_N, depth_N, list(self.lengths), list(map(len, rows)))
        return self._pass(rows, starts, torch.arange(len(row_N), device=device), layout, (len(rows), wide))

    def keep(self, counts: Sequence[int]) -> None:
        """Keeps so many of each row's tokens of the last pass; the others are written over."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def only(self, live: Sequence[int]) -> list[int]:
        """Keeps these rows; returns their order, since the last ones move into the places of those that go."""
        order = list(range(len(live)))
        gone, late = sorted(set(order) - set(live)), [b for b in live if b >= len(live)]
        for target, source in zip(gone, late, strict=True):
            order[target] = source
        if gone:
            device = self.places.row_N.device
            for layer in self.cache.layers:
                assert isinstance(layer, RowLayer)
                layer.move(torch.tensor(late, device=device), torch.tensor(gone, device=device), max(self.lengths))
        self.lengths = [self.lengths[b] for b in order]
        return order

    def _pass(
        self,
        rows: Sequence[Sequence[int]],
        starts: Sequence[tuple[int, int]],
        index_N: Tensor,
        layout: Packed | Steps,
        shown: tuple[int, int] | None,
    ) -> Tensor:
        """starts: row and first column of each row's tokens; index_N: tokens after which there are logits"""
        places, device = self.places, self.places.row_N.device
        runs = list(zip(rows, starts, strict=True))
        places.row_N = torch.tensor([b for row, (b, _) in runs for _ in row], device=device)
        places.column_N = torch.tensor([at + t for row, (_, at) in runs for t in range(len(row))], device=device)
        places.shown = shown
        ids_1N = torch.tensor([[token for row in rows for token in row]], device=device)
        with packed(self.model, layout):
            return cached_logits(self.model, ids_1N, None, index_N, self.cache, places.column_N[None]).logits_NV
