"""Rotates queries and keys of narrow heads in three passes over the whole row, on a CPU in float32.

transformers rotates them in slices of half a head: for heads of 8 numbers that is a loop over 4 of them for every token and head,
which takes about twice as long as the same products in one line (benchmarks/RESULTS.md).

Values are those of the model's own layers up to rounding. Only the layers of one model are replaced, only inside the context, and
only those without hooks.

Shape suffixes: T tokens of the row, H heads, K heads of keys and values, E heads times their width, W width of a head, L = T * E.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.models.load import causal_model

ROTATING = ("LlamaAttention", "MistralAttention", "Qwen2Attention")
"""Attention layers of a query, a key and a value projection, a rotation of whole heads in halves, and an output projection."""
NARROW = 32
"""Widest head that is rotated here: the tables are as large as the queries of the row."""

Attend = Callable[..., tuple[Tensor, None]]


class Turn(NamedTuple):
    """Cosines and sines of all numbers of a row of states, one after the other.

    A number of the first half of a head becomes x cos - y sin, with y the one half a head further on; a number of the second half
    y cos + x sin. Over the states as one line that is three products, two of them with the line moved by half a head.
    """

    cosine_L: Tensor
    further_L: Tensor
    """What the number half a head further on is multiplied by; 0 for the second half."""
    back_L: Tensor
    cos_1TW: Tensor
    sin_1TW: Tensor

    @classmethod
    def of(cls, cos_1TW: Tensor, sin_1TW: Tensor, heads: int) -> "Turn":
        """Makes the tables of a row from those of one head."""
        first_1TH, second_1TH = sin_1TW.chunk(2, dim=-1)
        further_1TW = torch.cat([-first_1TH, torch.zeros_like(first_1TH)], dim=-1)
        back_1TW = torch.cat([torch.zeros_like(first_1TH), second_1TH], dim=-1)
        lines = [table_1TW.repeat(1, 1, heads).view(-1) for table_1TW in (cos_1TW, further_1TW, back_1TW)]
        return cls(lines[0], lines[1], lines[2], cos_1TW, sin_1TW)

    def __call__(self, states_1TE: Tensor) -> Tensor:
        """Returns the rotated states, in the same shape."""
        half, line_L = self.cos_1TW.shape[-1] // 2, states_1TE.reshape(-1)
        turned_L = line_L * self.cosine_L
        turned_L[:-half].addcmul_(line_L[half:], self.further_L[:-half])
        turned_L[half:].addcmul_(line_L[:-half], self.back_L[half:])
        if isfinite(float(turned_L.detach().sum())):
            return turned_L.view(states_1TE.shape)
        # 0 times infinity is not a number: what is wrong with one token would be wrong with its neighbour too.
        head_1TKW: Tensor = states_1TE.unflatten(-1, (-1, 2 * half))
        first, second = head_1TKW.chunk(2, dim=-1)
        swapped_1TKW = torch.cat([-second, first], dim=-1)
        head_1TKW = head_1TKW * self.cos_1TW[:, :, None] + swapped_1TKW * self.sin_1TW[:, :, None]
        return head_1TKW.flatten(2)


@contextmanager
def rotated_in_line(model: nn.Module, attend: Attend) -> Iterator[int]:
    """Context manager in which attention layers of the known families with narrow heads work this way; yields their number.

    attend   the attention function of the row, as transformers calls it
    """
    changed, turns = list[Any](), dict[int, Turn]()
    try:
        inner = causal_model(model)
        for block in getattr(inner.base_model, "layers", ()) if inner.dtype == torch.float32 else ():
            layer: Any = getattr(block, "self_attn", None)
            known = type(layer).__name__ in ROTATING and type(layer).__module__.startswith("transformers.models.")
            if not known or layer.head_dim > NARROW:
                continue
            if "forward" not in vars(layer) and not layer._forward_hooks and not layer._forward_pre_hooks:
                layer.forward = _forward(layer, attend, turns)
                changed.append(layer)
        yield len(changed)
    finally:
        for layer in changed:
            del layer.forward


def _forward(layer: Any, attend: Attend, turns: dict[int, Turn]) -> Callable[..., tuple[Tensor, None]]:
    """turns: by number of heads; the same in all layers of one pass"""

    def turned(states_1TE: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        heads = states_1TE.shape[-1] // layer.head_dim
        if heads not in turns:
            turns[heads] = Turn.of(*tables, heads)
        return turns[heads](states_1TE)

    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **more: Any,
    ) -> tuple[Tensor, None]:
        query_1TE, key_1TE = (turned(project(hidden_states), position_embeddings) for project in (layer.q_proj, layer.k_proj))
        by_head = (*hidden_states.shape[:-1], -1, layer.head_dim)
        query_1HTW, key_1KTW, value_1KTW = (
            states_1TE.view(by_head).transpose(1, 2) for states_1TE in (query_1TE, key_1TE, layer.v_proj(hidden_states))
        )
        if past_key_values is not None:
            key_1KTW, value_1KTW = past_key_values.update(key_1KTW, value_1KTW, layer.layer_idx)
        window = {"sliding_window": getattr(layer, "sliding_window", getattr(layer.config, "sliding_window", None))}
        out_1THW, _ = attend(layer, query_1HTW, key_1KTW, value_1KTW, attention_mask, scaling=layer.scaling, **window, **more)
        return layer.o_proj(out_1THW.reshape(*hidden_states.shape[:-1], -1)), None

    return forward
