"""Computes one merged tensor piece by piece, from disk through a method to a sink."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from expunge.merging.plan import Item
from expunge.merging.report import TensorReport
from expunge.merging.storage import check_finite, squared_norm
from expunge.merging.stream import Stream
from expunge.merging.thresholds import Placing, within_tensor
from expunge.methods.editing.base import Angle, Cut, Piece

Sink = Callable[[int, Tensor], None]
"""Takes a piece: the position of its first element, and its elements."""


def merge_tensor(
    stream: Stream,
    item: Item,
    models: tuple[int, ...],
    cuts: Mapping[int, Cut] | None,
    sink: Sink,
    *,
    differences: bool,
) -> TensorReport:
    """Passes float32 pieces of the new weights, or of their difference to the base, to `sink`.

    models  the models that differ from the base in this tensor
    cuts    cuts over whole models; None: the method trims within the tensor
    """
    method, within = item.method, cuts is None
    by_model = within_tensor(stream, item, models) if cuts is None else {m: Placing(cuts[m]) for m in models}
    angle = _angle(stream, item, models[0]) if method.measures_angle else None
    readers = stream.readers(item, models)
    kept, outvoted, change, base, sizes = [0] * len(models), 0, 0.0, 0.0, [0.0] * len(models)
    trims = False
    labels = [stream.plan.sources[model].label for model in models]
    for start, stop in stream.pieces(item):
        base_E = stream.base(item, start, stop)
        base += squared_norm(base_E, stream.plan.base.label, item.name, start)
        if method.reads == "differences":
            inputs = tuple(reader.difference(start, stop, base_E) for reader in readers.values())
            # added to zeros, a difference is not rounded to the base's last place
            under_E = torch.zeros_like(base_E) if differences else base_E
        else:
            inputs = tuple(reader.weights(start, stop, base_E) for reader in readers.values())
            under_E = base_E
        for i, values_E in enumerate(inputs):
            sizes[i] += squared_norm(values_E, labels[i], item.name, start)
        piece = Piece(
            name=item.name,
            start=start,
            base_E=under_E,
            inputs=inputs,
            models=models,
            among=len(stream.plan.sources),
            cuts=tuple(by_model[model].at(start, values_E) for model, values_E in zip(models, inputs, strict=True)),
            offset=0 if within else item.offset,
            angle=angle,
        )
        edited = method.edit(piece)
        moved_E = edited.values_E
        if under_E is base_E:
            moved_E = torch.sub(edited.values_E, base_E, out=stream.scratch.floats(1, stop - start))
        change += squared_norm(moved_E, "the merge", item.name, start)
        sink(start, moved_E if differences else edited.values_E)
        trims = bool(edited.kept)
        kept = [a + b for a, b in zip(kept, edited.kept, strict=True)] if trims else kept
        outvoted += edited.outvoted
    return TensorReport(
        name=item.name,
        elements=item.base.elements,
        changed=models,
        kept=tuple(kept) if trims else (),
        outvoted=outvoted,
        distances=tuple(map(math.sqrt, sizes)) if method.reads == "differences" else (),
        change=math.sqrt(change),
        base=math.sqrt(base),
    )


def copy_tensor(stream: Stream, item: Item, sink: Sink) -> None:
    """Copies a tensor that no model changes, as it is on disk, and checks that its numbers are finite."""
    for start, stop in stream.pieces(item):
        raw_E = stream.raw(item, start, stop)
        if item.merged:
            check_finite(raw_E, stream.plan.base.label, item.name, start)
        sink(start, raw_E)


def _angle(stream: Stream, item: Item, model: int) -> Angle:
    reader = stream.readers(item, (model,))[model]
    base = other = dot = 0.0
    for start, stop in stream.pieces(item, counted=False):
        base_E = stream.base(item, start, stop)
        model_E = reader.weights(start, stop, base_E).double()
        base_E = base_E.double()
        base += float(torch.dot(base_E, base_E))
        other += float(torch.dot(model_E, model_E))
        dot += float(torch.dot(base_E, model_E))
    return Angle(base, other, dot)
