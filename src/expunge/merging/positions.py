"""Finds tensors in safetensors files, and reads and writes bytes at their positions; imports no torch.

Uses `pread` into reused buffers instead of memory maps: mapped pages count as resident memory and evict each other, and a merge
reads every byte only once or twice.
"""

import hashlib
import json
import math
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from expunge.errors import ExpungeError
from expunge.models.checkpoint import CODES, Checkpoint, read_header

if TYPE_CHECKING:
    import torch

PIECE = 2**17
"""Elements per piece: at float32 a buffer of 512 KiB, so that the few that a method works on stay in the second-level cache
(a merge with eight times as many took a quarter more CPU time, one with four times fewer a sixth more). Pieces begin at
multiples of it, whatever the number of threads."""

SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of a number by dtype, as a header names it."""

INFINITY = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
"""Bits of infinity by dtype; larger magnitudes are nan. These are also the dtypes that can be merged."""


class Stored(NamedTuple):
    """A tensor in a file."""

    file: Path
    offset: int
    """Byte offset in the file."""
    code: str
    """The dtype, as the header names it."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return SIZES[self.code]

    @property
    def nbytes(self) -> int:
        return self.elements * self.itemsize

    @property
    def dtype(self) -> "torch.dtype":
        import torch

        dtype: torch.dtype = getattr(torch, CODES[self.code])
        return dtype


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Returns every tensor of a model folder or of one safetensors file, in the order of the data on disk."""
    entries = Checkpoint(path).entries if path.is_dir() else read_header(path)
    data = {file: _data_start(file) for file in {entry.file for entry in entries.values()}}
    return {n: Stored(e.file, data[e.file] + e.start, e.code, e.shape) for n, e in entries.items()}


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


def pieces(elements: int) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of the pieces of a tensor, on a grid that is the same for every tensor."""
    for start in range(0, elements, PIECE):
        yield start, min(start + PIECE, elements)


def whole(files: Files, tensor: Stored, label: str, name: str) -> NDArray[Any]:
    """Reads a small tensor in one go, in float32, or in float64 if it is stored so. Raises ExpungeError for a tensor that is not
    floating-point, and for numbers that are not finite."""
    if tensor.code not in INFINITY:
        raise ExpungeError(f"{label}: {name} is stored as {CODES[tensor.code]}; weights to merge have to be floating-point")
    raw = read_bytes(files, tensor, 0, tensor.elements)
    check_bits(raw, tensor.code, label, name, 0)
    return widened(raw, tensor.code).reshape(tensor.shape)


def read_bytes(files: Files, tensor: Stored, start: int, stop: int) -> NDArray[np.uint8]:
    """Reads elements start..stop as they are on disk."""
    raw = np.empty((stop - start) * tensor.itemsize, np.uint8)
    files.read(tensor.file, tensor.offset + start * tensor.itemsize, raw.data)
    return raw


def widened(raw: NDArray[np.uint8], code: str) -> NDArray[Any]:
    """Converts stored bytes to float32, exactly; float64 stays. numpy has no bfloat16: its bits are the upper half of a
    float32's."""
    if code == "BF16":
        return (raw.view("<u2").astype("<u4") << 16).view("<f4")
    numbers = raw.view(f"<f{SIZES[code]}")
    return numbers.astype("<f4") if code == "F16" else numbers


def check_bits(raw: NDArray[np.uint8], code: str, label: str, name: str, start: int) -> None:
    """Raises ExpungeError if a number is not finite; tests bits, which takes a tenth of the time of a test of floats.

    raw  the bytes of consecutive elements; start: position of the first in the tensor
    """
    infinity, size = INFINITY[code], SIZES[code]
    bits = raw.view(f"<i{size}")
    if len(bits) and (bits.max() >= infinity or raw.view(f"<u{size}").max() >= infinity | 1 << (8 * size - 1)):
        numbers = widened(raw, code)
        where = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise not_finite(label, name, start + where, float(numbers[where]))


def not_finite(label: str, name: str, where: int, value: float) -> ExpungeError:
    return ExpungeError(
        f"{label}: {name} holds {value} at element {where}; a merge needs finite weights, repair that model first"
    )


def sha256_of(files: Files, tensor: Stored) -> str:
    """Computes the hash of the bytes of one tensor."""
    digest, step = hashlib.sha256(), 2**22
    buffer = bytearray(min(step, tensor.nbytes))
    for done in range(0, tensor.nbytes, step):
        part = memoryview(buffer)[: min(step, tensor.nbytes - done)]
        files.read(tensor.file, tensor.offset + done, part)
        digest.update(part)
    return digest.hexdigest()
