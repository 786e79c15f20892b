"""Computes attention within many sequences that stand one after the other, as small dense products.

Each sequence attends to its own tokens only; where sequences begin alike, these tokens stand in the row once. The work is cut
into blocks of queries, each with the keys that it may see; short ends of one beginning share a block, whose mask keeps them
apart.

In float32 a block is two plain matrix products with exp2 between them, without subtracting the maximum of each row first. The
normalizer of the softmax is one more column of the second product, over values with a column of ones. It also tells whether that
was right: while it is neither huge nor tiny, nothing overflowed and nothing that counts was rounded to zero. For packs of answers
and heads of 8 numbers this took about two thirds of the time of PyTorch's kernel for CPUs (benchmarks/RESULTS.md), which computes
the rest: other types, and layers with large scores.

Shape suffixes: T tokens of the row, K heads of keys and values, D width of a head, Q queries (tokens times the heads that share
their keys) and S keys of one block, C columns of values.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, pairwise
from math import e, log2
from operator import itemgetter
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
SHORT = 32
"""Most tokens of several ends in one block: what they see of each other is computed and hidden."""
BLOCK = 64
"""Most tokens of a block."""
COPIED = 2**14
"""Most keys that are copied next to each other at once."""
COLUMNS = 16
"""Fewest columns of values: a product with fewer takes longer."""
LARGE = 2.0**100
"""Bounds of the normalizer of a softmax from which the maximum was not subtracted: up to it nothing overflows, and down to its
inverse no number that counts is rounded to zero."""
_LARGE: WeakSet[nn.Module] = WeakSet()
"""Layers whose normalizers were beyond these bounds."""


class Block(NamedTuple):
    """Some tokens of one sequence, or some ends of one beginning, and the number of keys that they may see."""

    tokens: int
    """Number of tokens; the blocks of a row have them in order."""
    keys: int
    mask_QT: Tensor
    """Added to the scores with the last keys, which are the tokens themselves. Every query sees all keys before them."""


class Run(NamedTuple):
    """Blocks whose keys are copied next to each other at once."""

    blocks: list[Block]
    index_S: Tensor
    """For each key of each block, its token in the row."""


@dataclass
class Packed:
    """Segments of tokens that stand one after the other in one row. Each sees some earlier tokens, and itself."""

    lengths: Sequence[int]
    """Number of tokens of each segment."""
    before: Sequence[tuple[range, ...]]
    """For each segment, the tokens of the row that stand before it in its sequence."""
    _runs: dict[int, list[Run]] = field(default_factory=dict)

    def runs(self, like: Tensor, shared: int) -> list[Run]:
        """Returns the blocks of all sequences, with masks of this type and device; made once for all layers.

        shared: heads that share their keys, which are further queries
        """
        if shared not in self._runs:
            self._runs[shared] = list(self._cut(like, shared))
        return self._runs[shared]

    def _cut(self, like: Tensor, shared: int) -> Iterator[Run]:
        causal_QT = like.new_full((BLOCK, BLOCK), float("-inf")).triu_(1).repeat_interleave(shared, 0)
        blocks, spans, copied = list[Block](), list[range](), 0

        def run() -> Run:
            return Run(blocks, torch.tensor([*chain.from_iterable(spans)], device=like.device))

        for block, mine in self._blocks(causal_QT, shared):
            if blocks and copied + block.keys > COPIED:
                yield run()
                blocks, spans, copied = [], [], 0
            blocks, spans, copied = [*blocks, block], [*spans, *mine], copied + block.keys
        yield run()

    def _blocks(self, causal_QT: Tensor, shared: int) -> Iterator[tuple[Block, list[range]]]:
        """Yields the blocks in the order of their tokens, each with its keys: those before it in its sequence, then its own."""
        start = 0
        for before, several in self._together():
            count, seen = sum(several), sum(map(len, before))
            if len(several) == 1:
                for at, stop in pairwise([*range(0, count, BLOCK), count]):
                    mask_QT = causal_QT[: (stop - at) * shared, : stop - at]
                    yield Block(stop - at, seen + stop, mask_QT), [*before, range(start, start + stop)]
            else:
                mask_QT, done = causal_QT[: count * shared, :count].clone(), 0
                for more in several:
                    mask_QT[done * shared : (done + more) * shared, :done] = float("-inf")
                    done += more
                yield Block(count, seen + count, mask_QT), [*before, range(start, start + count)]
            start += count

    def _together(self) -> Iterator[tuple[tuple[range, ...], list[int]]]:
        """Yields the segments that share a block: neighbours that see the same tokens, at most `SHORT` tokens together.

        A longer segment is alone, and one that sees no other: what is not a number in one sequence would be so in the others.
        """
        for before, lengths in groupby(zip(self.before, self.lengths, strict=True), key=itemgetter(0)):
            several = list[int]()
            for _, length in lengths:
                if several and (not before or sum(several) + length > SHORT):
                    yield before, several
                    several = []
                several.append(length)
            yield before, several


def attend(layer: nn.Module, layout: Packed, query_KGTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float) -> Tensor:
    """Computes softmax(scale q k^T) v within each sequence of the layout, [T, K, G, D].

    query_KGTD   queries; G heads share their keys
    layer        what the states are of; for large scores the second way is taken at once from then on
    """
    if takes_products(layer, query_KGTD):
        out_TKGD = _by_products(layout, query_KGTD, key_KTD, value_KTD, scale)
        if out_TKGD is not None:
            return out_TKGD
        mark_large(layer)
    return _by_kernel(layout, query_KGTD, key_KTD, value_KTD, scale)


def takes_products(layer: nn.Module, query: Tensor) -> bool:
    """Returns whether the attention of a layer is computed without subtracting the maximum of each row of scores."""
    return query.dtype == torch.float32 and layer not in _LARGE


def mark_large(layer: nn.Module) -> None:
    """Notes that the scores of a layer are too large for that."""
    _LARGE.add(layer)


def is_moderate(total: Tensor) -> bool:
    """Returns whether these normalizers of a softmax are within the bounds."""
    least, most = (float(bound) for bound in total.aminmax())
    return least >= 1 / LARGE and most <= LARGE


def _by_products(layout: Packed, query_KGTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float) -> Tensor | None:
    """Computes every block as two matrix products, [T, K, G, D]; None where scores are too large for it."""
    pairs, shared, tokens, width = query_KGTD.shape
    value_TKC = value_KTD.new_zeros((tokens, pairs, max(COLUMNS, width + 1)))
    value_TKC[..., :width], value_TKC[..., width] = value_KTD.transpose(0, 1), 1.0

    def product(query_KQD: Tensor, key_KDS: Tensor, value_KSC: Tensor, mask_QT: Tensor) -> Tensor:
        score_KQS = torch.bmm(query_KQD, key_KDS)
        before = score_KQS.shape[2] - mask_QT.shape[1]
        (score_KQS[..., before:] if before else score_KQS).add_(mask_QT)
        return torch.bmm(score_KQS.exp2_(), value_KSC)

    query_KTGD = query_KGTD.new_empty((pairs, tokens, shared, width))
    torch.mul(query_KGTD.transpose(1, 2), scale * log2(e), out=query_KTGD)
    out_KQC = _each(layout, query_KTGD, key_KTD, value_TKC, product)
    total_KQ1 = out_KQC[..., width : width + 1]
    if not is_moderate(total_KQ1):
        return None
    out_TKGD = query_KGTD.new_empty((tokens, pairs, shared, width))
    out_KTGC = out_KQC.unflatten(1, (tokens, shared))
    torch.div(out_KTGC[..., :width], out_KTGC[..., width : width + 1], out=out_TKGD.transpose(0, 1))
    return out_TKGD


def _by_kernel(layout: Packed, query_KGTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float) -> Tensor:
    """Computes every block by PyTorch's kernel, [T, K, G, D]."""

    def product(query_KQD: Tensor, key_KDS: Tensor, value_KSD: Tensor, mask_QT: Tensor) -> Tensor:
        mask_QS = nn.functional.pad(mask_QT, (key_KDS.shape[2] - mask_QT.shape[1], 0))
        states = (query_KQD[None], key_KDS.transpose(1, 2)[None], value_KSD[None])
        out_KQD: Tensor = KERNEL(*states, 0.0, False, attn_mask=mask_QS, scale=scale)[0][0]
        return out_KQD

    shared, tokens = query_KGTD.shape[1:3]
    out_KQD = _each(layout, query_KGTD.transpose(1, 2).contiguous(), key_KTD, value_KTD.transpose(0, 1), product)
    out_TKGD: Tensor = out_KQD.unflatten(1, (tokens, shared)).transpose(0, 1)
    return out_TKGD


def _each(layout: Packed, query_KTGD: Tensor, key_KTD: Tensor, value_TKC: Tensor, product: Callable[..., Tensor]) -> Tensor:
    """Returns the products of all blocks, [K, Q, C]."""
    pairs, tokens, shared, width = query_KTGD.shape
    query_KQD = query_KTGD.view(pairs, tokens * shared, width)
    key_TE, value_TE = key_KTD.transpose(0, 1).reshape(tokens, -1), value_TKC.reshape(tokens, -1)
    runs = layout.runs(query_KQD, shared)
    queries = iter(query_KQD.split([block.tokens * shared for run in runs for block in run.blocks], dim=1))
    found = list[Tensor]()
    for blocks, index_S in runs:
        key_KDS = key_TE.index_select(0, index_S).view(-1, pairs, width).permute(1, 2, 0)
        value_KSC = value_TE.index_select(0, index_S).view(len(index_S), pairs, -1).transpose(0, 1)
        counts = [block.keys for block in blocks]
        states = zip(key_KDS.split(counts, dim=2), value_KSC.split(counts, dim=1), blocks, strict=True)
        found += [product(next(queries), keys, values, block.mask_QT) for keys, values, block in states]
    return torch.cat(found, dim=1)
