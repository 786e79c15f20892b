"""Attention over many sequences in one row of tokens, without padding.

A padded batch multiplies padding, and a mask over a whole row hides most products that were computed. Here sequences stand one
after the other in a single row, and each attends to its own tokens only (`attention_blocks`).

The model's own forward pass runs as it is; only its attention function is replaced, through transformers' interface for that. It
runs on a CPU.

Shape suffixes: T tokens of the row, H heads, K heads of keys and values, D width of a head, Q queries (T times H / K).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.models.attention_blocks import KERNEL, Packed, attend
from expunge.models.limits import text_config
from expunge.models.rotation import rotated_in_line

NAME = "expunge_packed"
UNKNOWN = ("softcap", "s_aux", "position_bias", "sliding_window", "cache")
"""Arguments of attention functions that change what is computed; models that give one are not computed this way."""


RUN = 16
"""Rows whose attention is computed at a time, padded to the most new tokens and the longest cache among them."""


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
        return Part(rows, tokens, columns, mask_BTS.repeat(1, shared, 1)[:, None])


_LAYOUT: ContextVar[Packed | Steps | None] = ContextVar("layout", default=None)


@contextmanager
def packed(model: nn.Module, layout: Packed | Steps) -> Iterator[None]:
    """Context manager in which the model takes one row of this layout, with position ids and without an attention mask."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    config = text_config(model)
    before, token = config._attn_implementation, _LAYOUT.set(layout)
    config._attn_implementation = NAME
    try:
        # The few tokens of a decoding pass are not worth the tables.
        with rotated_in_line(model, attention) if isinstance(layout, Packed) else nullcontext():
            yield
    finally:
        config._attn_implementation = before
        _LAYOUT.reset(token)


def attention(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Computes softmax(scaling q k^T) v within each sequence of the layout, [1, T, H, D], as an attention function of
    transformers. Raises NotImplementedError for attention of another kind."""
    layout = _LAYOUT.get()
    odd = [name for name in UNKNOWN if more.get(name) is not None]
    odd += ["values of another width"] if value_1KTD.shape[-1] != query_1HTD.shape[-1] else []
    if layout is None or attention_mask is not None or dropout or odd or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention of {type(module).__name__} is not computed packed")
    if isinstance(layout, Steps):
        return _steps(layout, query_1HTD, key_1KTD, value_1KTD, scaling), None
    pairs = key_1KTD.shape[1]
    heads, tokens, width = query_1HTD.shape[1:]
    scale = width**-0.5 if scaling is None else scaling
    query_KGTD = query_1HTD[0].unflatten(0, (pairs, heads // pairs))
    out_TKGD = attend(module, layout, query_KGTD, key_1KTD[0], value_1KTD[0], scale)
    return out_TKGD.reshape(1, tokens, heads, width), None


def _steps(layout: Steps, query_1HND: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, scaling: float | None) -> Tensor:
    """Computes attention of new tokens to the cache of their row, [1, N, H, D].

    Heads that share their keys count as further tokens: the kernel's time goes by heads where tokens are few.
    """
    rows, most = len(layout.counts), max(layout.counts)
    _, heads, _, width = query_1HND.shape
    pairs = key_BKSD.shape[1]
    shared = heads // pairs
    query_BTHD = query_1HND.new_zeros((rows, most, heads, width))
    query_BTHD[layout.row_N, layout.depth_N] = query_1HND[0].transpose(0, 1)
    out_BTHD = torch.empty_like(query_BTHD)
    for some, tokens, columns, mask_B1QS in layout.parts(query_1HND, shared):
        asked_BTKGD = query_BTHD[some, :tokens].unflatten(2, (pairs, shared))
        out_BKQD, _ = KERNEL(
            asked_BTKGD.permute(0, 2, 3, 1, 4).flatten(2, 3),
            key_BKSD[some, :, :columns],
            value_BKSD[some, :, :columns],
            0.0,
            False,
            attn_mask=mask_B1QS,
            scale=scaling,
        )
        out_BTHD[some, :tokens] = out_BKQD.unflatten(2, (shared, tokens)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    out_1NHD: Tensor = out_BTHD[layout.row_N, layout.depth_N][None]
    return out_1NHD
