"""Plans a merge from file headers alone: which tensors, their sources and destinations, how many bytes. Writes nothing."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from expunge.errors import ExpungeError
from expunge.folders import check_room, size_text
from expunge.merging.adapters import CONFIG
from expunge.merging.fitting import Vocabulary, check_adapter, fit, say_tied, tied_copies
from expunge.merging.inputs import Input, LowRank, Source
from expunge.merging.opening import BaseModel, open_base, open_source
from expunge.merging.positions import INFINITY, PIECE, Stored
from expunge.merging.storage import Shard, TensorPlace, lay_out
from expunge.merging.tokenizers import compare
from expunge.methods.editing import EditingMethod
from expunge.models.folder import file_hash
from expunge.models.load import DType

Write = Literal["weights", "delta", "adapter"]

HASHED = 8 * 10**9
"""Bytes of input files up to which they are hashed as a whole, which takes some seconds."""
OUT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class MergeRequest(NamedTuple):
    """All settings of a merge."""

    method: EditingMethod
    base: str
    models: tuple[str, ...]
    method_of: Callable[[str], EditingMethod]
    """Returns the method with its fields for one tensor: mergekit's filters and gradients."""
    shard_bytes: int
    write: Write = "weights"
    rank: int | None = None
    dtype: DType = "auto"
    vocabulary: Vocabulary = "refuse"
    recipe: str = ""
    """The file that described the merge, if there was one."""


class Item(NamedTuple):
    """One tensor of the output."""

    name: str
    base: Stored
    inputs: tuple[Input | None, ...]
    """One for each model; None if it equals the base."""
    method: EditingMethod
    dtype: torch.dtype
    merged: bool
    """Whether it is merged; integers and booleans are copied from the base."""
    offset: int
    """Number of elements of merged tensors before it in the order of names: positions over a whole model, however it is
    sharded."""

    @property
    def read_bytes(self) -> int:
        return self.base.nbytes + sum(source.read_bytes for source in self.inputs if source)


class Plan(NamedTuple):
    request: MergeRequest
    base: BaseModel
    sources: tuple[Source, ...]
    items: tuple[Item, ...]
    shards: tuple[Shard, ...]
    """For `weights`; what the other kinds write is known once the differences are."""
    places: dict[str, TensorPlace]
    notes: tuple[str, ...]

    @property
    def elements(self) -> int:
        """Returns the number of merged weights of one model."""
        return sum(item.base.elements for item in self.items if item.merged)

    @property
    def read_bytes(self) -> int:
        return sum(item.read_bytes for item in self.items)

    @property
    def write_bytes(self) -> int:
        """Returns the bytes to write; for other kinds than weights, an upper bound."""
        if self.request.write == "weights":
            return sum(shard.nbytes for shard in self.shards)
        return 4 * sum(item.base.elements for item in self.items if item.merged and any(item.inputs))

    def fingerprint(self) -> str:
        """Computes a hash that changes with the request and with any input file: with its content, or, of more than `HASHED`
        bytes in all, with its path, size and modification time."""
        files = sorted({part.file for item in self.items for part in _parts(item)})
        whole = sum(file.stat().st_size for file in files) <= HASHED
        stats = [file_hash(f) if whole else (str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        beside = [config.read_text(encoding="utf-8") for source in self.sources if (config := source.folder / CONFIG).is_file()]
        each = [(i.name, i.method.model_dump(mode="json"), str(i.dtype)) for i in self.items]
        said = {k: v for k, v in self.request._asdict().items() if k not in ("method", "method_of")}
        return hashlib.sha256(json.dumps([said, stats, beside, each]).encode()).hexdigest()


def _parts(item: Item) -> list[Stored]:
    parts = [item.base]
    for source in item.inputs:
        parts += [source.left, source.right] if isinstance(source, LowRank) else [source.tensor] if source else []
    return parts


def make_plan(request: MergeRequest) -> Plan:
    """Makes the plan. Raises ExpungeError, with the tensors' names, if the models do not fit together."""
    if not request.models:
        raise ExpungeError("there is nothing to merge; give at least one model after --models")
    request.method.check(len(request.models))
    base = open_base(request.base)
    sources = tuple(open_source(path, base) for path in request.models)
    notes = compare(base.folder, base.label, sources)
    skipped = tied_copies(base, sources, notes)
    if request.write != "adapter":
        for source in sources:
            say_tied(source, base, skipped, notes)
    fitted = tuple(fit(source, base, skipped, request.vocabulary, notes) for source in sources)
    items: list[Item] = []
    offsets = _offsets(base, skipped)
    for name, tensor in base.tensors.items():
        if name in skipped:
            continue
        merged = tensor.code in INFINITY
        inputs = tuple(given.get(name) for given in fitted)
        dtype = tensor.dtype if request.dtype == "auto" or not merged else OUT_DTYPES[request.dtype]
        items.append(Item(name, tensor, inputs if merged else (), request.method_of(name), dtype, merged, offsets[name]))
    if request.write == "adapter":
        check_adapter(request.method, request.rank, sources)
    shards, places = lay_out({i.name: (i.dtype, i.base.shape) for i in items}, request.shard_bytes)
    return Plan(request, base, sources, tuple(items), shards, places, tuple(notes))


def _offsets(base: BaseModel, skipped: set[str]) -> dict[str, int]:
    offsets, before = {}, 0
    for name in sorted(set(base.tensors) - skipped):
        offsets[name] = before
        before += base.tensors[name].elements if base.tensors[name].code in INFINITY else 0
    return offsets


def check_disk(folder: Path, needed: int) -> None:
    """Raises ExpungeError before the first byte if the output would not fit; `folder` need not exist yet."""
    check_room(folder, needed, "the merge")


def memory_bytes(plan: Plan, threads: int) -> int:
    """Estimates the memory of a merge without Python and its libraries: buffers per thread, and factors of adapters."""
    widest = max((len([i for i in item.inputs if i]) for item in plan.items), default=0)
    factors = max((i.read_bytes for item in plan.items for i in item.inputs if isinstance(i, LowRank)), default=0)
    return threads * (PIECE * 4 * (widest + 8) + 2 * factors) + widest * 2**23


def describe(plan: Plan, threads: int, out: Path) -> str:
    """Returns what --dry-run prints."""
    read, passes = plan.read_bytes, 1 + any(i.method.band(0, i.base.elements) is not None for i in plan.items if i.merged)
    changed = sum(1 for item in plan.items if item.merged and any(item.inputs))
    lines = [
        f"{plan.request.method.method_name()} of {len(plan.sources)} models on {plan.base.label}",
        f"  {len(plan.items)} tensors, {plan.elements:,} weights; {changed} tensors may change, the others are copied",
        f"  reads {size_text(read)}, {passes} times, writes {size_text(plan.write_bytes)} to {out}",
        f"  {threads} threads, about {memory_bytes(plan, threads) / 1e6:.0f} MB beside Python and its libraries",
        *(f"  {note}" for note in plan.notes),
    ]
    if plan.request.write == "weights":
        lines += [f"  {shard.file}  {size_text(shard.nbytes)}" for shard in plan.shards]
    return "\n".join(lines) + os.linesep
