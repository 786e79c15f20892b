"""Reads safetensors weights lazily by tensor name, finds the weight files of a folder, and writes safetensors files."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from expunge.errors import ExpungeError, nearest
from expunge.records import follow_umask

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
MAX_HEADER_BYTES = 100_000_000
"""Limit of the safetensors format."""

CODES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The names of dtypes in a safetensors header -> in torch."""


class Entry(NamedTuple):
    """The entry of a tensor in a file's header: dtype, shape and position; its data is not read."""

    file: Path
    code: str
    """The dtype, as the header names it."""
    shape: tuple[int, ...]
    start: int
    """Byte offset of the data in the file's data section."""
    nbytes: int

    @property
    def dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, CODES[self.code])
        return dtype


class Checkpoint(Mapping[str, "Tensor"]):
    """A lazy mapping: `checkpoint[name]` reads one tensor from disk, a new one each time; `entries` holds all shapes and
    dtypes.

    Iteration follows the order of the data on disk, so that each shard is read once from beginning to end.
    """

    def __init__(self, path: str | Path) -> None:
        """path: a folder with model.safetensors or its index, or one safetensors file."""
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
        """Returns the size of all tensors together."""
        return sum(entry.nbytes for entry in self.entries.values())


def weight_files(folder: Path) -> tuple[Path | None, tuple[Path, ...]]:
    """Returns the index (of sharded weights) and the safetensors files that are the weights of a model folder.

    All readers use this function. Raises ExpungeError if a folder has two sets of weights, of which other libraries read
    different ones.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise ExpungeError(
            f"{folder} holds two sets of weights, {SINGLE} and the shards of {INDEX}, and readers differ in which they take; "
            "move one of them away"
        )
    if not index.is_file():
        if not single.is_file():
            raise ExpungeError(f"{folder} holds neither {SINGLE} nor {INDEX}; give a model folder with safetensors weights")
        shards: tuple[Path, ...] = (single,)
    else:
        shards = tuple(folder / name for name in sorted(set(_weight_map(index).values())))
    taken = (index if index.is_file() else single).name
    if stray := sorted(f.name for f in folder.glob("model-*-of-*.safetensors") if _SHARD.fullmatch(f.name) and f not in shards):
        raise ExpungeError(
            f"{folder} holds {stray[0]}, which belongs to another set of weights than {taken}; "
            "move the set that is not wanted away"
        )
    return (index if index.is_file() else None), shards


def _weight_map(index: Path) -> dict[str, str]:
    """Returns tensor name -> file."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not found or not all(isinstance(name, str) and name == Path(name).name for name in found.values()):
            raise ValueError("its weight_map names no files of this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExpungeError(f"{index} is not an index of safetensors shards ({error}); copy the folder again") from error
    return dict(found)


def _entries(path: Path) -> dict[str, Entry]:
    if path.is_file():
        return read_header(path)
    index, files = weight_files(path)
    return read_header(files[0]) if index is None else _indexed(path, _weight_map(index))


def _indexed(folder: Path, weight_map: dict[str, str]) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise ExpungeError(f"{folder} lacks the shard {shard} that its index names; copy the folder again")
        found |= read_header(folder / shard)
    for name, shard in weight_map.items():
        if name not in found or found[name].file.name != shard:
            raise ExpungeError(f"{folder / shard} lacks the tensor {name} that the index promises; copy the folder again")
    return found  # what the index leaves out is read all the same, as transformers does


def read_header(path: Path) -> dict[str, Entry]:
    """Reads names, dtypes, shapes and offsets of a safetensors file, and checks its length; its data is not read. Raises
    ExpungeError for a broken file."""
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
    if dtype not in CODES:
        raise KeyError(dtype)
    return Entry(path, dtype, tuple(shape), start, stop - start)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes one safetensors file under a temporary name, syncs it, and renames it; permissions follow the umask.

    Tensors that share memory, such as tied embeddings, are each written (safetensors itself refuses them). Raises OSError if the
    disk is full or read-only.
    """
    from safetensors.torch import save_file

    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        plain[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in storages else tensor
        storages.add(tensor.untyped_storage().data_ptr())
    _put(Path(path), lambda temporary: save_file(plain, temporary, metadata={"format": "pt", **(metadata or {})}))


def save_arrays(path: str | Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes numpy's arrays to the same file as `save_tensors` their equals in torch, which it does not import."""
    import numpy as np
    from safetensors.numpy import save_file

    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # others are written as they lie in memory
    _put(Path(path), lambda temporary: save_file(plain, temporary, metadata={"format": "pt"}))


def os_error(error: Exception, file: Path) -> OSError:
    """Converts what safetensors and tokenizers raise on a full disk, an error of their own with the number of the system's."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(file)) if number else OSError(f"{file}: {error}")


def _put(file: Path, write: Callable[[Path], None]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        follow_umask(temporary)
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except SafetensorError as error:
        raise os_error(error, file) from error
    finally:
        temporary.unlink(missing_ok=True)
