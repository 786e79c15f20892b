"""Computes attention of a few new tokens of many rows, each to the cache of its row.

In float32 it is two plain matrix products with exp2 between them, as in `attention_blocks`: heads of 8 numbers take about three
quarters of the time of PyTorch's kernel for CPUs, wide heads the same within a tenth (benchmarks/RESULTS.md). That kernel
computes other types, and layers with large scores.

Shape suffixes: B rows, N new tokens of all rows, T new tokens of a row at most, H heads, K heads of keys and values, G heads that
share them, D width of a head, C columns of values, S columns of the cache, Q queries of a row (T times G), P heads of keys of all
rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import e, log2
from typing import NamedTuple

import torch
from torch import Tensor, nn

from expunge.models.attention_blocks import COLUMNS, KERNEL, is_moderate, mark_large, takes_products

RUN = 32
"""Rows whose attention is computed at a time, padded to the most new tokens and the longest cache among them."""


def value_columns(width: int) -> int:
    """Returns the columns of cached values of this width; the last ones are empty."""
    return max(COLUMNS, width)


class Part(NamedTuple):
    """Describes some rows of a pass: how many new tokens and columns of the cache they have at most."""

    rows: slice
    tokens: int
    columns: int
    mask_B1QS: Tensor
    """Added to the scores."""


@dataclass
class Steps:
    """New tokens of rows whose earlier ones are in a cache, in one row of N tokens."""

    row_N: Tensor
    depth_N: Tensor
    """Index of each token among the new ones of its row."""
    lengths: Sequence[int]
    """For each row, its earlier tokens in the cache; the new ones were put behind them already."""
    counts: Sequence[int]
    """For each row, its new tokens."""
    _parts: dict[int, list[Part]] = field(default_factory=dict)

    @cached_property
    def place_N(self) -> Tensor:
        """Index of each token among the B * T places of rows that are padded to the most new tokens."""
        return self.row_N * max(self.counts) + self.depth_N

    def parts(self, like: Tensor, shared: int) -> list[Part]:
        """Returns all rows in parts, with masks of this type and device for so many heads that share their keys; made once for
        all layers."""
        if shared not in self._parts:
            self._parts[shared] = [
                self._part(slice(first, first + RUN), like, shared) for first in range(0, len(self.counts), RUN)
            ]
        return self._parts[shared]

    def _part(self, rows: slice, like: Tensor, shared: int) -> Part:
        lengths, counts = self.lengths[rows], self.counts[rows]
        tokens, columns = max(counts), max(map(sum, zip(lengths, counts, strict=True)))
        lengths_B11 = torch.tensor(lengths, device=like.device)[:, None, None]
        hidden_BTS = torch.arange(columns, device=like.device) > lengths_B11 + torch.arange(tokens, device=like.device)[:, None]
        mask_BTS = like.new_zeros(hidden_BTS.shape).masked_fill_(hidden_BTS, float("-inf"))
        return Part(rows, tokens, columns, mask_BTS.repeat_interleave(shared, 1)[:, None])


def attend_steps(
    layer: nn.Module, layout: Steps, query_NKGD: Tensor, key_BKSD: Tensor, value_BKSC: Tensor, scale: float
) -> Tensor:
    """Computes softmax(scale q k^T) v of new tokens to the cache of their row, [N, K, G, D].

    layer   what the states are of; for large scores the second way is taken at once from then on
    """
    if takes_products(layer, query_NKGD):
        out_NKGD = _by_products(layout, query_NKGD * (scale * log2(e)), key_BKSD, value_BKSC)
        if out_NKGD is not None:
            return out_NKGD
        mark_large(layer)
    return _by_kernel(layout, query_NKGD, key_BKSD, value_BKSC, scale)


def _by_products(layout: Steps, query_NKGD: Tensor, key_BKSD: Tensor, value_BKSC: Tensor) -> Tensor | None:
    """Computes attention of queries that are scaled already; None where scores are too large for it."""
    width = query_NKGD.shape[-1]
    query_BTKGD = _padded(layout, query_NKGD)
    out_BTKGD = torch.empty_like(query_BTKGD)
    for part in layout.parts(query_NKGD, query_NKGD.shape[2]):
        some_BKTGD = query_BTKGD[part.rows, : part.tokens].transpose(1, 2)
        key_PSD, value_PSC = (states[part.rows, :, : part.columns].flatten(0, 1) for states in (key_BKSD, value_BKSC))
        score_PQS = torch.bmm(some_BKTGD.flatten(2, 3).flatten(0, 1), key_PSD.mT)
        score_PQS.unflatten(0, some_BKTGD.shape[:2]).add_(part.mask_B1QS)
        total_PQ1 = score_PQS.exp2_().sum(-1, keepdim=True)
        if not is_moderate(total_PQ1):
            return None
        found_PQD = torch.bmm(score_PQS, value_PSC)[..., :width] / total_PQ1
        out_BTKGD[part.rows, : part.tokens] = found_PQD.view(some_BKTGD.shape).transpose(1, 2)
    return out_BTKGD.flatten(0, 1).index_select(0, layout.place_N)


def _by_kernel(layout: Steps, query_NKGD: Tensor, key_BKSD: Tensor, value_BKSC: Tensor, scale: float) -> Tensor:
    """Computes the same with PyTorch's kernel. Heads that share their keys count as further tokens: the kernel's time goes by
    heads where tokens are few."""
    shared, width = query_NKGD.shape[2:]
    query_BTKGD = _padded(layout, query_NKGD)
    out_BTKGD = torch.empty_like(query_BTKGD)
    for part in layout.parts(query_NKGD, shared):
        out_BKQD, _ = KERNEL(
            query_BTKGD[part.rows, : part.tokens].transpose(1, 2).flatten(2, 3),
            key_BKSD[part.rows, :, : part.columns],
            value_BKSC[part.rows, :, : part.columns, :width],
            0.0,
            False,
            attn_mask=part.mask_B1QS,
            scale=scale,
        )
        out_BTKGD[part.rows, : part.tokens] = out_BKQD.unflatten(2, (-1, shared)).transpose(1, 2)
    return out_BTKGD.flatten(0, 1).index_select(0, layout.place_N)


def _padded(layout: Steps, query_NKGD: Tensor) -> Tensor:
    """Returns the queries of each row, [B, T, K, G, D], with zeros behind its last new token."""
    rows, most = len(layout.counts), max(layout.counts)
    query_ZKGD = query_NKGD.new_zeros((rows * most, *query_NKGD.shape[1:]))
    query_ZKGD.index_copy_(0, layout.place_N, query_NKGD)
    return query_ZKGD.view(rows, most, *query_NKGD.shape[1:])
