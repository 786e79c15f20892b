"""Attention over many sequences in one row of tokens, without padding.

A padded batch multiplies padding, and a mask over a whole row hides most products that were computed. Here sequences stand one
after the other in a single row, and each attends to its own tokens only (`attention_blocks`).

The model's own forward pass runs as it is; only its attention function is replaced, through transformers' interface for that. It
runs on a CPU.

Shape suffixes: T tokens of the row, H heads, K heads of keys and values, D width of a head, Q queries (T times H / K).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from expunge.models.attention_blocks import Packed, attend
from expunge.models.attention_steps import Steps, attend_steps, value_columns
from expunge.models.limits import text_config
from expunge.models.rotation import rotated_in_line

NAME = "expunge_packed"
UNKNOWN = ("softcap", "s_aux", "position_bias", "sliding_window", "cache")
"""Arguments of attention functions that change what is computed; models that give one are not computed this way."""


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
    odd += ["values of another width"] if value_1KTD.shape[-1] != _value_width(layout, query_1HTD.shape[-1]) else []
    if layout is None or attention_mask is not None or dropout or odd or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention of {type(module).__name__} is not computed packed")
    pairs = key_1KTD.shape[1]
    heads, tokens, width = query_1HTD.shape[1:]
    scale = width**-0.5 if scaling is None else scaling
    query_KGTD = query_1HTD[0].unflatten(0, (pairs, heads // pairs))
    if isinstance(layout, Steps):
        out_TKGD = attend_steps(module, layout, query_KGTD.permute(2, 0, 1, 3), key_1KTD, value_1KTD, scale)
    else:
        out_TKGD = attend(module, layout, query_KGTD, key_1KTD[0], value_1KTD[0], scale)
    return out_TKGD.reshape(1, tokens, heads, width), None


def _value_width(layout: Packed | Steps | None, width: int) -> int:
    """Returns the columns of the values of heads of this width; those in the cache have empty ones."""
    return value_columns(width) if isinstance(layout, Steps) else width
