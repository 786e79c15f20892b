"""Reads and writes tensors at byte positions of safetensors files, in float32 pieces.

Uses `pread` into reused buffers instead of memory maps: mapped pages count as resident memory and evict each other, and a merge
reads every byte only once or twice.
"""

import errno
import hashlib
import json
import math
import os
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.models.checkpoint import CODES, Checkpoint, read_header

PIECE = 2**17
"""Elements per piece: at float32 a buffer of 512 KiB, so that the few that a method works on stay in the second-level cache
(a merge with eight times as many took a quarter more CPU time, one with four times fewer a sixth more). Pieces begin at
multiples of it, whatever the number of threads."""

DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in CODES.items()}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

INFINITY = {
    torch.float16: (np.int16, 0x7C00),
    torch.bfloat16: (np.int16, 0x7F80),
    torch.float32: (np.int32, 0x7F800000),
    torch.float64: (np.int64, 0x7FF0000000000000),
}
"""Bits of infinity by dtype; larger magnitudes are nan. These are also the dtypes that can be merged."""


class Stored(NamedTuple):
    """A tensor in a file."""

    file: Path
    offset: int
    """Byte offset in the file."""
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Returns every tensor of a model folder or of one safetensors file, in the order of the data on disk."""
    entries = Checkpoint(path).entries if path.is_dir() else read_header(path)
    data = {file: _data_start(file) for file in {entry.file for entry in entries.values()}}
    return {n: Stored(e.file, data[e.file] + e.start, e.dtype, e.shape) for n, e in entries.items()}


def metadata(file: Path) -> dict[str, str]:
    """Returns the metadata of a safetensors header."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        found: dict[str, str] = json.loads(stream.read(length)).get("__metadata__", {})
    return found


def _data_start(file: Path) -> int:
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
    return 8 + int(length)


class Files:
    """Open files by path; reads and writes at positions, safe from several threads. `with Files() as files`."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _descriptor(self, file: Path, flags: int) -> int:
        with self._lock:
            if file not in self._open:
                self._open[file] = os.open(file, flags)
            return self._open[file]

    def read(self, file: Path, offset: int, into: memoryview) -> None:
        descriptor, done = self._descriptor(file, os.O_RDONLY), 0
        while done < len(into):
            count = os.preadv(descriptor, [into[done:]], offset + done)
            if count == 0:
                raise ExpungeError(f"{file} ended before byte {offset + len(into)}; it changed while it was read, start again")
            done += count

    def write(self, file: Path, offset: int, data: memoryview) -> None:
        descriptor, done = self._descriptor(file, os.O_RDWR), 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], offset + done)

    def flush(self, files: set[Path]) -> None:
        """Waits until everything written is on the disk."""
        for file in files:
            os.fsync(self._descriptor(file, os.O_RDWR))


class Scratch:
    """The buffers of one thread, reused for every piece: new memory is not in the cache and costs more than the arithmetic."""

    def __init__(self) -> None:
        self._raw: dict[int, Tensor] = {}
        self._floats: dict[int, Tensor] = {}

    def raw(self, which: int, nbytes: int) -> Tensor:
        """Returns a buffer of bytes: 0 for the base, 1 for everything else that is read or written."""
        if which not in self._raw or self._raw[which].numel() < nbytes:
            self._raw[which] = torch.empty(nbytes, dtype=torch.uint8)
        return self._raw[which][:nbytes]

    def floats(self, which: int, count: int) -> Tensor:
        """Returns a float buffer: 0 for the base, 1 for the change, then one for each model."""
        if which not in self._floats or self._floats[which].numel() < count:
            self._floats[which] = torch.empty(count)
        return self._floats[which][:count]


def pieces(elements: int) -> Iterator[tuple[int, int]]:
    """(start, stop) on the fixed grid."""
    for start in range(0, elements, PIECE):
        yield start, min(start + PIECE, elements)


def read_raw(files: Files, tensor: Stored, start: int, stop: int, buffer: Tensor) -> Tensor:
    """Reads elements start..stop as they are on disk, into `buffer`."""
    size = tensor.dtype.itemsize
    raw = buffer[: (stop - start) * size]
    files.read(tensor.file, tensor.offset + start * size, raw.numpy().data)
    return raw.view(tensor.dtype)


def squared_norm(values_E: Tensor, label: str, name: str, start: int) -> float:
    """Computes <x, x>, which is finite only if every element is, and so also tests for this."""
    total = float(torch.dot(values_E, values_E))
    if math.isfinite(total):
        return total
    bad = (~torch.isfinite(values_E)).nonzero()
    if len(bad):
        raise not_finite(label, name, start + int(bad[0]), float(values_E[bad[0]]))
    return float(torch.dot(values_E.double(), values_E.double()))


def not_finite(label: str, name: str, where: int, value: float) -> ExpungeError:
    return ExpungeError(
        f"{label}: {name} holds {value} at element {where}; a merge needs finite weights, repair that model first"
    )


def check_finite(raw_E: Tensor, label: str, name: str, start: int) -> None:
    """Raises ExpungeError if an element is not finite; tests bits, which takes a tenth of the time of a test of floats."""
    kind, infinity = INFINITY[raw_E.dtype]
    bits = raw_E.view(torch.uint8).numpy().view(kind)
    if len(bits) and (bits.max() >= infinity or bits.view(f"u{bits.itemsize}").max() >= infinity | 1 << (8 * bits.itemsize - 1)):
        where = int(np.flatnonzero(~np.isfinite(raw_E.double().numpy()))[0])
        raise not_finite(label, name, start + where, float(raw_E[where]))


def sha256_of(files: Files, tensor: Stored) -> str:
    """Computes the hash of the bytes of one tensor."""
    digest, step = hashlib.sha256(), 2**22
    buffer = bytearray(min(step, tensor.nbytes))
    for done in range(0, tensor.nbytes, step):
        part = memoryview(buffer)[: min(step, tensor.nbytes - done)]
        files.read(tensor.file, tensor.offset + done, part)
        digest.update(part)
    return digest.hexdigest()


class TensorPlace(NamedTuple):
    """Where a tensor of the output is written."""

    file: str
    offset: int


class Shard(NamedTuple):
    file: str
    header: bytes
    nbytes: int
    """Size of header and data."""


def lay_out(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    shard_bytes: int,
    stem: str = "model",
    note: Mapping[str, str] | None = None,
) -> tuple[tuple[Shard, ...], dict[str, TensorPlace]]:
    """Computes headers, sizes and positions of the output before it is written.

    Shards fill up in the order of `tensors`. Within a shard wider dtypes come first, so that every tensor is aligned.
    """
    groups: list[list[str]] = [[]]
    size = 0
    for name, (dtype, shape) in tensors.items():
        nbytes = Stored(Path(), 0, dtype, shape).nbytes
        if groups[-1] and size + nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    shards: list[Shard] = []
    places: dict[str, TensorPlace] = {}
    for i, names in enumerate(groups, start=1):
        file = f"{stem}.safetensors" if len(groups) == 1 else f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **(note or {})}}
        end = 0
        for name in sorted(names, key=lambda n: -tensors[n][0].itemsize):
            dtype, shape = tensors[name]
            stop = end + Stored(Path(), 0, dtype, shape).nbytes
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [end, stop]}
            end = stop
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        data = struct.pack("<Q", len(text)) + text
        places |= {n: TensorPlace(file, len(data) + header[n]["data_offsets"][0]) for n in names}
        shards.append(Shard(file, data, len(data) + end))
    return tuple(shards), places


def reserve(file: Path, shard: Shard) -> None:
    """Creates an output file with its header at its full size, with blocks reserved if the system can."""
    with open(file, "wb") as stream:
        stream.write(shard.header)
        stream.flush()
        if sys.platform == "linux":
            try:
                os.posix_fallocate(stream.fileno(), 0, shard.nbytes)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise  # a file system that has no such call still gives the size by the next line
        os.truncate(stream.fileno(), shard.nbytes)
        os.fsync(stream.fileno())
