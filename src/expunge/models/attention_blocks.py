"""Computes attention within many sequences that stand one after the other, as small dense products.

Each sequence attends to its own tokens only: a beginning with an end to itself, and further ends of the same beginning to the
beginning and to themselves. The work is cut into blocks of queries, each with the keys that it may see; short ends of one
beginning share a block, whose mask keeps them apart.

In float32 a block is two plain matrix products with exp2 between them, without subtracting the maximum of each row first. The
normalizer of the softmax is one more column of the second product, over values with a column of ones. It also tells whether that
was right: while it is neither huge nor tiny, nothing overflowed and nothing that counts was rounded to zero. For packs of answers
and heads of 8 numbers this took about two thirds of the time of PyTorch's kernel for CPUs (benchmarks/RESULTS.md), which computes
the rest: other types, and layers with large scores.

Shape suffixes: T tokens of the row, K heads of keys and values, D width of a head, Q queries (tokens times the heads that share
their keys) and S keys of one block, C columns of values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import e, log2
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
SHORT = 32
"""Most tokens of several ends in one block: what they see of each other is computed and hidden."""
BLOCK = 128
"""Most tokens of a block."""
COLUMNS = 16
"""Fewest columns of values: a product with fewer takes longer."""
LARGE = 2.0**100
"""Bounds of the normalizer of a softmax from which the maximum was not subtracted: up to it nothing overflows, and down to its
inverse no number that counts is rounded to zero."""
_LARGE: WeakSet[nn.Module] = WeakSet()
"""Layers whose normalizers were beyond these bounds."""


class Block(NamedTuple):
    """Some tokens of one sequence, or some ends of one beginning, and the keys that they may see."""

    tokens: int
    """Number of tokens; the blocks of a row have them in order."""
    beginning: slice
    own: slice
    """Tokens of the keys: those of a beginning, then these."""
    mask_QT: Tensor
    """Added to the scores with the last keys, which are the tokens themselves. Every query sees all keys before them."""


@dataclass
class Packed:
    """Lengths of the sequences in one row: first one of each group, then the other ends of all groups, in order."""

    firsts: Sequence[int]
    """For each group, the length of its beginning together with the end that follows it, if any."""
    shared: Sequence[int]
    """For each group, the length of its beginning."""
    ends: Sequence[Sequence[int]]
    """For each group, the lengths of further ends, which see its beginning and themselves; each at least 1."""
    _blocks: dict[int, list[Block]] = field(default_factory=dict)

    def blocks(self, like: Tensor, shared: int) -> list[Block]:
        """Returns the blocks of all sequences, with masks of this type and device; made once for all layers.

        shared: heads that share their keys, which are further queries
        """
        if shared not in self._blocks:
            self._blocks[shared] = self._cut(like, shared)
        return self._blocks[shared]

    def _cut(self, like: Tensor, shared: int) -> list[Block]:
        causal_QT = like.new_full((BLOCK, BLOCK), float("-inf")).triu_(1).repeat_interleave(shared, 0)
        firsts, others, start, end = list[Block](), list[Block](), 0, sum(self.firsts)

        def alone(first: int, length: int, beginning: slice) -> list[Block]:
            """Returns the blocks of one sequence."""
            cuts = [*range(0, length, BLOCK), length]
            return [
                Block(stop - at, beginning, slice(first, first + stop), causal_QT[: (stop - at) * shared, : stop - at])
                for at, stop in pairwise(cuts)
            ]

        for length, begun, ends in zip(self.firsts, self.shared, self.ends, strict=True):
            firsts += alone(start, length, slice(start, start))
            beginning = slice(start, start + begun)
            for run in _runs(ends):
                count = sum(run)
                if len(run) == 1:
                    others += alone(end, count, beginning)
                else:
                    mask_QT, done = causal_QT[: count * shared, :count].clone(), 0
                    for more in run:
                        mask_QT[done * shared : (done + more) * shared, :done] = float("-inf")
                        done += more
                    others.append(Block(count, beginning, slice(end, end + count), mask_QT))
                end += count
            start += length
        return firsts + others


def _runs(ends: Sequence[int]) -> list[list[int]]:
    """Cuts the ends of a beginning into runs of at most `SHORT` tokens; a longer end is a run of its own."""
    found, total = list[list[int]](), SHORT
    for length in ends:
        if total + length > SHORT:
            found, total = [*found, []], 0
        found[-1].append(length)
        total += length
    return found


def attend(layer: nn.Module, layout: Packed, query_KQD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float) -> Tensor:
    """Computes softmax(scale q k^T) v within each sequence of the layout, [K, Q, D].

    query_KQD   queries of all tokens, those of the heads that share their keys next to each other
    layer       what the states are of; for large scores the second way is taken at once from then on
    """
    if query_KQD.dtype == torch.float32 and layer not in _LARGE:
        out_KQD = _by_products(layout, query_KQD, key_KTD, value_KTD, scale)
        if out_KQD is not None:
            return out_KQD
        _LARGE.add(layer)
    return _by_kernel(layout, query_KQD, key_KTD, value_KTD, scale)


def _by_products(layout: Packed, query_KQD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float) -> Tensor | None:
    """Computes every block as two matrix products, [K, Q, D]; None where scores are too large for it."""
    pairs, tokens, width = value_KTD.shape
    query_KQD = query_KQD * (scale * log2(e))
    value_KTC = value_KTD.new_zeros((pairs, tokens, max(COLUMNS, width + 1)))
    value_KTC[..., :width], value_KTC[..., width] = value_KTD, 1.0

    def product(query_KQD: Tensor, key_KSD: Tensor, value_KSC: Tensor, mask_QT: Tensor) -> Tensor:
        score_KQS = torch.bmm(query_KQD, key_KSD.transpose(1, 2))
        last = mask_QT.shape[1]
        score_KQS.narrow(2, score_KQS.shape[2] - last, last).add_(mask_QT)
        return torch.bmm(score_KQS.exp2_(), value_KSC)

    out_KQC = _each(layout, query_KQD, key_KTD, value_KTC, product)
    total_KQ1 = out_KQC[..., width : width + 1]
    least, most = (float(bound) for bound in total_KQ1.aminmax())
    return out_KQC[..., :width] / total_KQ1 if least >= 1 / LARGE and most <= LARGE else None


def _by_kernel(layout: Packed, query_KQD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float) -> Tensor:
    """Computes every block by PyTorch's kernel, [K, Q, D]."""

    def product(query_KQD: Tensor, key_KSD: Tensor, value_KSD: Tensor, mask_QT: Tensor) -> Tensor:
        mask_QS = nn.functional.pad(mask_QT, (key_KSD.shape[1] - mask_QT.shape[1], 0))
        out_KQD: Tensor = KERNEL(query_KQD[None], key_KSD[None], value_KSD[None], 0.0, False, attn_mask=mask_QS, scale=scale)[0][
            0
        ]
        return out_KQD

    return _each(layout, query_KQD, key_KTD, value_KTD, product)


def _each(layout: Packed, query_KQD: Tensor, key_KTD: Tensor, value_KTC: Tensor, product: Callable[..., Tensor]) -> Tensor:
    """Returns the products of all blocks, [K, Q, C]."""
    pairs, tokens, width = key_KTD.shape
    columns, shared = value_KTC.shape[-1], query_KQD.shape[1] // tokens
    blocks = layout.blocks(query_KQD, shared)
    lengths = [(beginning.stop - beginning.start, own.stop - own.start) for _, beginning, own, _ in blocks]
    widest = max(map(sum, lengths))
    keys_KSD, values_KSC = key_KTD.new_empty((pairs, widest, width)), value_KTC.new_empty((pairs, widest, columns))
    found, filled = list[Tensor](), None
    queries = query_KQD.split([block.tokens * shared for block in blocks], dim=1)
    for block_KQD, (_, beginning, own, mask_QT), (before, more) in zip(queries, blocks, lengths, strict=True):
        block_KSD, block_KSC = key_KTD.narrow(1, own.start, more), value_KTC.narrow(1, own.start, more)
        if before:
            if filled != beginning:
                keys_KSD.narrow(1, 0, before).copy_(key_KTD.narrow(1, beginning.start, before))
                values_KSC.narrow(1, 0, before).copy_(value_KTC.narrow(1, beginning.start, before))
                filled = beginning
            keys_KSD.narrow(1, before, more).copy_(block_KSD)
            values_KSC.narrow(1, before, more).copy_(block_KSC)
            block_KSD, block_KSC = keys_KSD.narrow(1, 0, before + more), values_KSC.narrow(1, 0, before + more)
        found.append(product(block_KQD, block_KSD, block_KSC, mask_QT))
    return torch.cat(found, dim=1)
