"""Attention over many sequences in one row of tokens, without padding.

A padded batch multiplies padding, and a mask over a whole row hides most products that were computed. Here sequences stand one
after the other in a single row, and each attends to its own tokens only (`attention_blocks`).

The model's own forward pass runs as it is; only its attention function is replaced, through transformers' interface for that. It
runs on a CPU.

Shape suffixes: T tokens of the row, H heads, K heads of keys and values, D width of a head, Q queries (T times H / K).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from expunge.models.attention_blocks import KERNEL, Packed, attend
from expunge.models.limits import text_config

NAME = "expunge_packed"
UNKNOWN = ("softcap", "s_aux", "position_bias", "sliding_window", "cache")
"""Arguments of attention functions that change what is computed; models that give one are not computed this way."""


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
    odd += ["values of another width"] if value_1KTD.shape[-1] != query_1HTD.shape[-1] else []
    if layout is None or attention_mask is not None or dropout or odd or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention of {type(module).__name__} is not computed packed")
    if isinstance(layout, Steps):
        return _steps(layout, query_1HTD, key_1KTD, value_1KTD, scaling), None
    pairs = key_1KTD.shape[1]
    heads, tokens, width = query_1HTD.shape[1:]
    scale = width**-0.5 if scaling is None else scaling
    query_KQD = query_1HTD.view(pairs, heads // pairs, tokens, width).transpose(1, 2).reshape(pairs, -1, width)
    out_KQD = attend(module, layout, query_KQD, key_1KTD[0], value_1KTD[0], scale)
    return out_KQD.view(pairs, tokens, -1, width).transpose(0, 1).reshape(1, tokens, heads, width), None


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
    out, _ = KERNEL(
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
