"""Computes the cuts of trimming methods: one per model over many tensors, or one per model within a tensor."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from expunge.merging.plan import Item
from expunge.merging.positions import PIECE
from expunge.merging.select import (
    SMALL,
    Bits,
    RankedMagnitude,
    Search,
    cut_of,
    magnitude_bits,
    ranks,
    select_small,
    ties_to_place,
)
from expunge.merging.stream import Stream
from expunge.methods.editing.base import Band, Cut

SAMPLE, WIDTH = 2**16, 2**11
"""Entries that a first guess is made from, read in blocks of so many."""


def over_models(stream: Stream, changed: Mapping[str, tuple[int, ...]]) -> dict[int, Cut]:
    """Returns one cut per model, over all its weights or over those in tensors that it changes."""
    plan, method = stream.plan, stream.plan.request.method
    cuts: dict[int, Cut] = {}
    bands: dict[int, Band] = {}
    items = {m: [i for i in plan.items if m in changed.get(i.name, ())] for m in range(len(plan.sources))}
    for model, those in items.items():
        among = plan.elements if method.trims_over == "global" else sum(i.base.elements for i in those)
        band = method.band(model, among)
        if band is None or not those:
            cuts[model] = Cut()
        else:
            bands[model] = band
    found = _search(stream, {m: (ranks(band), items[m]) for m, band in bands.items()}, threads=True)
    return cuts | {m: _cut(stream, m, items[m], band, found[m]) for m, band in bands.items()}


def within_tensor(stream: Stream, item: Item, models: Sequence[int]) -> dict[int, "Placing"]:
    """Returns one cut per model for one tensor, in the thread that merges it."""
    bands = {m: band for m in models if (band := item.method.band(m, item.base.elements))}
    found: dict[int, tuple[RankedMagnitude, ...]] = {}
    if item.base.elements <= SMALL:
        for model, band in bands.items():
            bits = np.concatenate([part.copy() for _, part in _bits(stream, item, (model,), counted=False)])
            found[model] = tuple(select_small(bits, rank) for rank in ranks(band))
    else:
        found = _search(stream, {m: (ranks(band), [item]) for m, band in bands.items()}, threads=False)
    placing = {m: Placing(Cut()) for m in models}
    for model, band in bands.items():
        ties = ties_to_place(band, found[model]) if item.method.exact_ties else (None, 0)
        placing[model] = Placing(cut_of(found[model]), *ties)
    return placing


class Placing:
    """A cut whose ties are resolved while the pieces of a tensor are processed in order, without another pass."""

    def __init__(self, cut: Cut, stay: int | None = None, go: int = 0) -> None:
        """stay, go: number of entries equal to the low end that are kept (None: all), and equal to the high end that are
        dropped."""
        self.cut, self._stay, self._go = cut, stay, go or None

    def at(self, start: int, values_E: Tensor) -> Cut:
        """Returns the cut for this piece."""
        if self._stay is not None:
            self._stay, end = _passed(values_E, self.cut.low, self._stay, start)
            self.cut = self.cut._replace(low_end=end)
        if self._go is not None:
            self._go, end = _passed(values_E, self.cut.high, self._go, start)
            self.cut = self.cut._replace(high_end=start + len(values_E) if end is None else end)
        return self.cut


def _passed(values_E: Tensor, magnitude: float, wanted: int, start: int) -> tuple[int | None, int | None]:
    """Returns (number of entries of a magnitude still wanted after this piece, None), or (None, the position after the last
    one)."""
    equal = np.abs(values_E.numpy()) == np.float32(magnitude)
    passed = int(np.count_nonzero(equal))
    if passed < wanted:
        return wanted - passed, None
    return None, start + int(np.flatnonzero(equal)[wanted - 1]) + 1


def _search(
    stream: Stream, wanted: Mapping[int, tuple[tuple[int, ...], list[Item]]], threads: bool
) -> dict[int, tuple[RankedMagnitude, ...]]:
    """Passes over the tensors until every rank of every model is found."""
    searches: dict[int, list[Search]] = {}
    for model, (wanted_ranks, items) in wanted.items():
        total = sum(i.base.elements for i in items)
        sample = _sample(stream, model, items, total) if min(wanted_ranks) < total else np.zeros(1, np.uint32)
        searches[model] = [Search(rank, total, sample) for rank in wanted_ranks]
    while unfinished := [m for m, several in searches.items() if any(s.found is None for s in several)]:
        todo: dict[str, list[int]] = {}
        for model in unfinished:
            for item in wanted[model][1]:
                todo.setdefault(item.name, []).append(model)

        def count(item: Item, todo: Mapping[str, list[int]] = todo) -> None:
            for model, bits in _bits(stream, item, todo[item.name], counted=threads):
                for search in searches[model]:
                    search.count(bits)

        items = [i for i in stream.plan.items if i.name in todo]
        for _ in stream.each(count, items) if threads else map(count, items):
            pass
        for model in unfinished:
            for search in searches[model]:
                search.narrow()
    return {model: tuple(s.found for s in several if s.found) for model, several in searches.items()}


def _bits(stream: Stream, item: Item, models: Sequence[int], *, counted: bool) -> Iterator[tuple[int, Bits]]:
    """Yields (model, magnitudes of its differences as bits), piece by piece."""
    readers = stream.readers(item, models)
    for start, stop in stream.pieces(item, counted=counted):
        base_E = stream.base(item, start, stop)
        for model, reader in readers.items():
            yield model, magnitude_bits(reader.difference(start, stop, base_E).numpy())


def _sample(stream: Stream, model: int, items: Sequence[Item], total: int) -> Bits:
    """Reads blocks at even distances, proportionally from each tensor."""
    parts = []
    for item in items:
        elements = item.base.elements
        share = -(-SAMPLE * elements // total)
        width, blocks = min(share, WIDTH, elements), -(-share // WIDTH)
        reader = stream.readers(item, (model,))[model]
        for block in range(blocks):
            start = min(block * elements // blocks, elements - width)
            values_E = reader.difference(start, start + width, stream.base(item, start, start + width))
            parts.append(magnitude_bits(values_E.numpy()).copy())
    return np.concatenate(parts)


def _cut(stream: Stream, model: int, items: Sequence[Item], band: Band, found: tuple[RankedMagnitude, ...]) -> Cut:
    cut = cut_of(found)
    if not items[0].method.exact_ties:
        return cut
    stay, go = ties_to_place(band, found)
    if stay is not None:
        cut = cut._replace(low_end=_end(stream, model, items, found[0].bits, stay))
    if go:
        cut = cut._replace(high_end=_end(stream, model, items, found[1].bits, go))
    return cut


def _end(stream: Stream, model: int, items: Sequence[Item], bits: int, count: int) -> int:
    """Returns the position after the `count`-th entry of a magnitude: counted by tensor first, then in the tensor that
    contains it."""
    numbers = {i.name: n for i, n in stream.each(lambda i: _equal(stream, i, model, bits), items)}
    for item in sorted(items, key=lambda item: item.offset):
        if count <= numbers[item.name]:
            break
        count -= numbers[item.name]
    for at, (_, part) in enumerate(_bits(stream, item, (model,), counted=False)):
        places = np.flatnonzero(part == np.uint32(bits))
        if count <= len(places):
            return item.offset + at * PIECE + int(places[count - 1]) + 1
        count -= len(places)
    raise RuntimeError(f"{item.name} changed while it was read")


def _equal(stream: Stream, item: Item, model: int, bits: int) -> int:
    return sum(int(np.count_nonzero(part == np.uint32(bits))) for _, part in _bits(stream, item, (model,), counted=False))
