"""Reads the inputs of a merge (model folders, LoRA adapters, files of differences) as float32 pieces of a tensor.

An adapter is merged as a dense change of a weight: delta = scaling B A, a few rows at a time. Factors are not merged
individually, since they are not unique (B R and R^-1 A are the same adapter).
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.merging.storage import INFINITY, Files, Scratch, Stored, check_finite, read_raw


class Values(NamedTuple):
    """A tensor of a complete checkpoint. It may have fewer rows than the base's (a smaller vocabulary): the rest equals the
    base."""

    tensor: Stored

    @property
    def read_bytes(self) -> int:
        return self.tensor.nbytes


class Difference(NamedTuple):
    """A tensor of a file of differences: model - base."""

    tensor: Stored

    @property
    def read_bytes(self) -> int:
        return self.tensor.nbytes


class LowRank(NamedTuple):
    """delta = scaling left right,  left: rows x rank, right: rank x columns; B and A, or their transposes where a weight is
    stored transposed (GPT-2's Conv1D, embeddings)."""

    left: Stored
    right: Stored
    transposed: bool
    embedding: bool
    scaling: float

    @property
    def read_bytes(self) -> int:
        return self.left.nbytes + self.right.nbytes


Input = Values | Difference | LowRank


class Source(NamedTuple):
    """One model of a merge."""

    label: str
    """The model as the user wrote it."""
    folder: Path
    inputs: dict[str, Input]
    complete: bool
    """Whether a missing tensor is an error; otherwise it equals the base's."""
    base_sha256: dict[str, str]
    """For a file of differences: hashes of the base tensors that it belongs to."""


class Reader:
    """Reads pieces of one tensor of one model, in float32, each into the same buffer."""

    def __init__(self, files: Files, scratch: Scratch, buffer: int, source: Input, label: str, name: str) -> None:
        self.files, self.scratch, self.buffer = files, scratch, buffer
        self.source, self.label, self.name = source, label, name
        if isinstance(source, LowRank):
            self._left, self._right = self._factors(source)

    def difference(self, start: int, stop: int, base_E: Tensor) -> Tensor:
        """Computes model - base, rounded once."""
        if isinstance(self.source, Values):
            return self._values(self.source.tensor, start, stop, base_E).sub_(base_E)
        return self._delta(self.source, start, stop)

    def weights(self, start: int, stop: int, base_E: Tensor) -> Tensor:
        if isinstance(self.source, Values):
            return self._values(self.source.tensor, start, stop, base_E)
        return self._delta(self.source, start, stop).add_(base_E)

    def _delta(self, source: Difference | LowRank, start: int, stop: int) -> Tensor:
        if isinstance(source, Difference):
            return self._stored(source.tensor, start, stop, self.scratch.floats(self.buffer, stop - start))
        columns = self._right.shape[1]
        first, last = start // columns, -(-stop // columns)
        rows = self._left[first:last] @ self._right
        return rows.flatten()[start - first * columns : stop - first * columns]

    def _values(self, tensor: Stored, start: int, stop: int, base_E: Tensor) -> Tensor:
        """Reads values; rows that the model does not have are the base's."""
        values_E = self.scratch.floats(self.buffer, stop - start)
        has = max(min(stop, tensor.elements) - start, 0)
        self._stored(tensor, start, start + has, values_E[:has])
        values_E[has:] = base_E[has:]
        return values_E

    def _stored(self, tensor: Stored, start: int, stop: int, into_E: Tensor) -> Tensor:
        raw = self.scratch.raw(1, (stop - start) * tensor.dtype.itemsize)
        return into_E.copy_(read_raw(self.files, tensor, start, stop, raw))

    def _factors(self, source: LowRank) -> tuple[Tensor, Tensor]:
        left, right = (whole(self.files, t, self.label, self.name) for t in (source.left, source.right))
        if source.transposed:
            left, right = right.T, left.T
        return (left * source.scaling).contiguous(), right.contiguous()


def whole(files: Files, tensor: Stored, label: str, name: str) -> Tensor:
    """A small tensor in one go, as float32. Raises ExpungeError for a tensor that is not floating-point."""
    if tensor.dtype not in INFINITY:
        raise ExpungeError(f"{label}: {name} is stored as {tensor.dtype}; weights to merge have to be floating-point")
    raw = read_raw(files, tensor, 0, tensor.elements, torch.empty(tensor.nbytes, dtype=torch.uint8))
    check_finite(raw, label, name, 0)
    return raw.float().reshape(tensor.shape)
