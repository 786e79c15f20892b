"""Writes merged tensors as a checkpoint, a file of differences, or an adapter."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.merging.adapters import PREFIX, WEIGHTS
from expunge.merging.edit import copy_tensor, merge_tensor
from expunge.merging.inputs import LowRank
from expunge.merging.journal import Findings
from expunge.merging.opening import DELTA, DELTA_KEY
from expunge.merging.plan import Item, Plan
from expunge.merging.positions import sha256_of
from expunge.merging.recompress import factorize
from expunge.merging.report import TensorReport
from expunge.merging.storage import DTYPE_NAMES, Shard, TensorPlace, check_finite, lay_out
from expunge.merging.stream import Stream

UNLIMITED = 2**62


class Output(NamedTuple):
    """One kind of output."""

    shards: tuple[Shard, ...]
    items: tuple[Item, ...]
    """The tensors that it contains."""
    fill: Callable[[Item, Path], TensorReport | None]
    """Computes one tensor and writes it into the files of a folder; returns None if it was copied."""


def weights_output(stream: Stream, plan: Plan, findings: Findings) -> Output:
    """Outputs every tensor of the base, rounded once to its dtype; tensors that no model changes are copied byte for byte."""

    def fill(item: Item, folder: Path) -> TensorReport | None:
        sink = _sink(stream, item.name, item.dtype, folder, plan.places[item.name])
        models = findings.changed.get(item.name, ())
        if not item.merged or (not models and item.method.keeps_equal(len(plan.sources))):
            copy_tensor(stream, item, sink)
            return None
        return merge_tensor(stream, item, models, findings.cuts, sink, differences=False)

    return Output(plan.shards, plan.items, fill)


def delta_output(stream: Stream, plan: Plan, findings: Findings) -> Output:
    """Outputs the differences of changed tensors to the base, and the hashes of the base tensors that they belong to."""
    items = _changed(plan, findings)
    hashes = {item.name: digest for item, digest in stream.each(lambda i: sha256_of(stream.files, i.base), items)}
    dtype = torch.float32 if plan.request.dtype == "auto" else items[0].dtype
    note = {DELTA_KEY: json.dumps(hashes, sort_keys=True)}
    shards, places = lay_out({i.name: (dtype, i.base.shape) for i in items}, UNLIMITED, Path(DELTA).stem, note)

    def fill(item: Item, folder: Path) -> TensorReport:
        sink = _sink(stream, item.name, dtype, folder, places[item.name])
        return merge_tensor(stream, item, findings.changed[item.name], findings.cuts, sink, differences=True)

    return Output(shards, items, fill)


def adapter_output(stream: Stream, plan: Plan, findings: Findings) -> Output:
    """Outputs two factors per changed weight: the best approximation of its merged difference at the given rank."""
    items, rank = _changed(plan, findings), plan.request.rank
    assert rank is not None
    keys = {item.name: factor_keys(item) for item in items}
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for item in items:
        rows, columns = item.base.shape[::-1] if _low_rank(item).transposed else item.base.shape
        kept = min(rank, rows, columns)
        layout |= {keys[item.name][0]: (torch.float32, (kept, columns)), keys[item.name][1]: (torch.float32, (rows, kept))}
    shards, places = lay_out(layout, UNLIMITED, Path(WEIGHTS).stem)

    def fill(item: Item, folder: Path) -> TensorReport:
        dense = torch.empty(item.base.elements)

        def collect(start: int, values_E: Tensor) -> None:
            dense[start : start + len(values_E)] = values_E

        report = merge_tensor(stream, item, findings.changed[item.name], findings.cuts, collect, differences=True)
        delta = dense.view(item.base.shape)
        a, b, residual = factorize(delta.T if _low_rank(item).transposed else delta, rank)
        for key, factor in zip(keys[item.name], (a, b), strict=True):
            _sink(stream, key, torch.float32, folder, places[key])(0, factor.flatten())
        return report.model_copy(update={"residual": residual})

    return Output(shards, items, fill)


def factor_keys(item: Item) -> tuple[str, str]:
    """Returns the names of A and B in PEFT's file."""
    module = PREFIX + item.name.removesuffix(".weight")
    if _low_rank(item).embedding:
        return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _low_rank(item: Item) -> LowRank:
    found = next(given for given in item.inputs if given is not None)
    assert isinstance(found, LowRank)
    return found


def _changed(plan: Plan, findings: Findings) -> tuple[Item, ...]:
    items = tuple(item for item in plan.items if findings.changed.get(item.name))
    if not items:
        raise ExpungeError("no model differs from the base, so there is no difference to write; check --base and --models")
    return items


def _sink(stream: Stream, name: str, dtype: torch.dtype, folder: Path, place: TensorPlace) -> Callable[[int, Tensor], None]:
    """Rounds pieces to `dtype`, to nearest and ties to even, and writes them to their positions."""
    file = folder / place.file

    def sink(start: int, values_E: Tensor) -> None:
        rounded_E = values_E
        if values_E.dtype != dtype:
            rounded_E = stream.scratch.raw(1, len(values_E) * dtype.itemsize).view(dtype).copy_(values_E)
            try:
                check_finite(rounded_E, "", name, start)
            except ExpungeError as error:
                raise ExpungeError(
                    f"the merged {name} leaves the range of {DTYPE_NAMES[dtype]}; take --dtype float32, or a smaller --scale"
                ) from error
        stream.files.write(file, place.offset + start * dtype.itemsize, rounded_E.view(torch.uint8).numpy().data)

    return sink


OUTPUTS: Mapping[str, Callable[[Stream, Plan, Findings], Output]] = {
    "weights": weights_output,
    "delta": delta_output,
    "adapter": adapter_output,
}
