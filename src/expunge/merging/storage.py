"""Reads tensors of safetensors files in float32 pieces into reused buffers, and lays out the files of a result."""

import errno
import json
import math
import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from expunge.merging.positions import Files, Stored, check_bits, not_finite
from expunge.models.checkpoint import CODES

DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in CODES.items()}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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


def read_raw(files: Files, tensor: Stored, start: int, stop: int, buffer: Tensor) -> Tensor:
    """Reads elements start..stop as they are on disk, into `buffer`."""
    raw = buffer[: (stop - start) * tensor.itemsize]
    files.read(tensor.file, tensor.offset + start * tensor.itemsize, raw.numpy().data)
    return raw.view(DTYPES[tensor.code])


def squared_norm(values_E: Tensor, label: str, name: str, start: int) -> float:
    """Computes <x, x>, which is finite only if every element is, and so also tests for this."""
    total = float(torch.dot(values_E, values_E))
    if math.isfinite(total):
        return total
    bad = (~torch.isfinite(values_E)).nonzero()
    if len(bad):
        raise not_finite(label, name, start + int(bad[0]), float(values_E[bad[0]]))
    return float(torch.dot(values_E.double(), values_E.double()))


def check_finite(raw_E: Tensor, label: str, name: str, start: int) -> None:
    """Raises ExpungeError if an element is not finite."""
    check_bits(raw_E.view(torch.uint8).numpy(), DTYPE_NAMES[raw_E.dtype], label, name, start)


class TensorPlace(NamedTuple):
    """The position of a tensor in the output: file and byte offset."""

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
        nbytes = math.prod(shape) * dtype.itemsize
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
            stop = end + math.prod(shape) * dtype.itemsize
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
