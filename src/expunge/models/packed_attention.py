"""Attention over many sequences in one row of tokens, without padding and without a mask.

A padded batch multiplies padding, and a mask hides products that were computed. Here sequences stand one after the other in a
single row, and each attends to its own tokens only: a beginning to itself, causally; the ends that follow it to the whole
beginning, in one product for all ends, and each to itself, causally. Both parts have a softmax of their own; with their
normalizers Z (which the kernel returns as logarithms) the softmax over both is the mean of their results weighted by Z.

The model's own forward pass runs as it is; only its attention function is replaced, through transformers' interface for that. It
needs PyTorch's attention kernel for CPUs, which returns the normalizers.

Shape suffixes: T tokens of the row, H heads, K heads of keys and values, D width of a head, N tokens of all ends.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.models.limits import text_config

NAME = "expunge_packed"
UNKNOWN = ("softcap", "s_aux", "position_bias", "sliding_window", "cache")
"""Arguments of attention functions that change what is computed; models that give one are not computed this way."""


class Packed(NamedTuple):
    """Lengths of the sequences in one row: first the beginnings of all groups, then the ends of all groups, in order."""

    beginnings: Sequence[int]
    ends: Sequence[Sequence[int]]
    """For each beginning, the lengths of the ends that follow it; each at least 1."""


@dataclass
class Steps:
    """New tokens of B rows whose earlier ones are in a cache: one row of N tokens, of which row b has at most T."""

    row_N: Tensor
    depth_N: Tensor
    """Index of each token among the new ones of its row."""
    mask_B1TS: Tensor
    """Added to the scores of each row's new tokens with the columns of its cache, into which they were put already."""
    _masks: dict[int, Tensor] = field(default_factory=dict)

    def mask_for(self, shared: int) -> Tensor:
        """Returns the mask for so many heads that share their keys, [B, 1, shared * T, S]; made once for all layers."""
        if shared not in self._masks:
            self._masks[shared] = self.mask_B1TS.repeat(1, 1, shared, 1)
        return self._masks[shared]


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
    if layout is None or attention_mask is not None or dropout or odd or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention of {type(module).__name__} is not computed packed")
    if isinstance(layout, Steps):
        return _steps(layout, query_1HTD, key_1KTD, value_1KTD, scaling), None
    begun, joined, alone, weights, alone_weights = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()

    def attended(queries: slice, keys: slice, causal: bool) -> tuple[Tensor, Tensor]:
        """Returns results [1, T, H, D] and the logarithms of the normalizers [1, T, H]."""
        out_1HTD, lse_1HT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query_1HTD[:, :, queries], key_1KTD[:, :, keys], value_1KTD[:, :, keys], 0.0, causal, scale=scaling
        )
        return out_1HTD.transpose(1, 2), lse_1HT.transpose(1, 2)

    start, end = 0, sum(layout.beginnings)
    for length, ends in zip(layout.beginnings, layout.ends, strict=True):
        beginning = slice(start, start + length)
        begun.append(attended(beginning, beginning, True)[0])
        if ends:
            out, lse = attended(slice(end, end + sum(ends)), beginning, False)
            joined.append(out)
            weights.append(lse)
        for more_length in ends:
            own = slice(end, end + more_length)
            out, lse = attended(own, own, True)
            alone.append(out)
            alone_weights.append(lse)
            end += more_length
        start += length
    if joined:
        own_1NHD, beginning_1NHD = torch.cat(alone, dim=1), torch.cat(joined, dim=1)
        share_1NH = (torch.cat(weights, dim=1) - torch.cat(alone_weights, dim=1)).sigmoid()
        begun.append(own_1NHD.lerp(beginning_1NHD, share_1NH[..., None].to(own_1NHD.dtype)))
    return torch.cat(begun, dim=1), None


def _steps(layout: Steps, query_1HND: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, scaling: float | None) -> Tensor:
    """Computes attention of new tokens to the cache of their row, [1, N, H, D].

    Heads that share their keys count as further tokens: the kernel's time goes by heads where tokens are few.
    """
    rows, _, most, _ = layout.mask_B1TS.shape
    _, heads, _, width = query_1HND.shape
    pairs = key_BKSD.shape[1]
    shared = heads // pairs
    query_BTHD = query_1HND.new_zeros((rows, most, heads, width))
    query_BTHD[layout.row_N, layout.depth_N] = query_1HND[0].transpose(0, 1)
    out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query_BTHD.view(rows, most, pairs, shared, width).permute(0, 2, 3, 1, 4).reshape(rows, pairs, shared * most, width),
        key_BKSD,
        value_BKSD,
        0.0,
        False,
        attn_mask=layout.mask_for(shared),
        scale=scaling,
    )
    out_BTHD = out.view(rows, pairs, shared, most, width).permute(0, 3, 1, 2, 4).reshape(rows, most, heads, width)
    out_1NHD: Tensor = out_BTHD[layout.row_N, layout.depth_N][None]
    return out_1NHD
