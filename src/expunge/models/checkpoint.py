"""A folder of safetensors weights as a lazy mapping name -> tensor, and its atomic writer; neither holds a whole model."""

import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import ExpungeError, nearest
from expunge.records import write_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The names of dtypes in a safetensors header."""


class Entry(NamedTuple):
    """What the header says of a tensor, known without reading its data."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Byte offset of the data in the file's data section."""
    nbytes: int


class Checkpoint(Mapping[str, Tensor]):
    """`checkpoint[name]` reads one tensor from disk, a fresh one each time; `entries` holds shapes and dtypes of all.

    Iteration is in the order of the data on disk, so that going through a checkpoint reads every shard once, front to back.
    """

    def __init__(self, path: str | Path) -> None:
        """`path`: a folder with model.safetensors or its index, or one safetensors file."""
        entries = _entries(Path(path))
        self.path = Path(path)
        self.entries: dict[str, Entry] = dict(sorted(entries.items(), key=lambda item: (item[1].file.name, item[1].start)))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.entries:
            raise KeyError(f"{self.path} has no tensor '{name}'{nearest(name, self.entries)}")
        # opened anew each time: tensors of one handle share its memory map, and changing one in place would change later reads
        with safe_open(self.entries[name].file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    @property
    def nbytes(self) -> int:
        """Size of all tensors together."""
        return sum(entry.nbytes for entry in self.entries.values())


def _entries(path: Path) -> dict[str, Entry]:
    if path.is_file():
        return read_header(path)
    if (path / INDEX).is_file():
        return _indexed(path)
    if (path / SINGLE).is_file():
        return read_header(path / SINGLE)
    raise ExpungeError(f"{path} holds neither {SINGLE} nor {INDEX}; give a model folder with safetensors weights")


def _indexed(folder: Path) -> dict[str, Entry]:
    try:
        weight_map: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError) as error:
        raise ExpungeError(f"{folder / INDEX} is not an index of safetensors shards ({error}); copy the folder again") from error
    found: dict[str, Entry] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise ExpungeError(f"{folder} lacks the shard {shard} that its index names; copy the folder again")
        found |= read_header(folder / shard)
    for name, shard in weight_map.items():
        if name not in found or found[name].file.name != shard:
            raise ExpungeError(f"{folder / shard} lacks the tensor {name} that the index promises; copy the folder again")
    return {name: found[name] for name in weight_map}


def read_header(path: Path) -> dict[str, Entry]:
    """Names, dtypes, shapes and places of a safetensors file; its length is checked, its data is not read."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = {name: _entry(path, **item) for name, item in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ExpungeError(f"{path} is not a safetensors file that expunge can read ({error!r}); copy it again") from error
    expected = 8 + length + max((e.start + e.nbytes for e in entries.values()), default=0)
    if path.stat().st_size != expected:
        raise ExpungeError(f"{path} has {path.stat().st_size} bytes instead of {expected}; copy it again")
    return entries


def _entry(path: Path, dtype: str, shape: list[int], data_offsets: tuple[int, int]) -> Entry:
    start, stop = data_offsets
    return Entry(path, DTYPES[dtype], tuple(shape), start, stop - start)


def write_checkpoint(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes model.safetensors, or shards and their index, into a folder that has no weights yet.

    At most one shard is held in memory. Files are written into a folder inside and moved when all are done, the one that makes
    them a checkpoint (the single file, or the index) last: a crash or a full disk leaves no checkpoint, never half of one.
    """
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        raise ExpungeError(f"{folder} holds weights already; give another folder")
    partial = folder / ".weights.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        shards = [
            _write_shard(partial / str(i), shard, metadata or {}) for i, shard in enumerate(_shards(tensors, max_shard_bytes))
        ]
        _publish(folder, shards)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _shards(tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Fills shards in order; a tensor larger than a shard gets its own."""
    shard: dict[str, Tensor] = {}
    seen: set[str] = set()
    size = 0
    for name, tensor in tensors:
        if name in seen:
            raise ValueError(f"the tensor {name} comes twice")
        seen.add(name)
        if shard and size + tensor.nbytes > max_shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


class _Shard(NamedTuple):
    file: Path
    names: tuple[str, ...]
    nbytes: int


def _write_shard(file: Path, shard: dict[str, Tensor], metadata: Mapping[str, str]) -> _Shard:
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in shard.items():
        tensor = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory, such as tied embeddings
        plain[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in storages else tensor
        storages.add(tensor.untyped_storage().data_ptr())
    save_file(plain, file, metadata={"format": "pt", **metadata})
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
    return _Shard(file, tuple(plain), sum(tensor.nbytes for tensor in plain.values()))


def _publish(folder: Path, shards: list[_Shard]) -> None:
    if len(shards) == 1:
        os.replace(shards[0].file, folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard.names, name)
        os.replace(shard.file, folder / name)
    write_json(folder / INDEX, {"metadata": {"total_size": sum(s.nbytes for s in shards)}, "weight_map": weight_map})
