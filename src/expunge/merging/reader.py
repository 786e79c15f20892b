"""Reads the inputs of a merge piece by piece, in float32.

An adapter is merged as a dense change of a weight: delta = scaling B A, a few rows at a time. Factors are not merged
individually, since they are not unique (B R and R^-1 A are the same adapter).
"""

import torch
from torch import Tensor

from expunge.merging.inputs import Difference, Input, LowRank, Values
from expunge.merging.positions import Files, Stored, whole
from expunge.merging.storage import Scratch, read_raw


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
        raw = self.scratch.raw(1, (stop - start) * tensor.itemsize)
        return into_E.copy_(read_raw(self.files, tensor, start, stop, raw))

    def _factors(self, source: LowRank) -> tuple[Tensor, Tensor]:
        left, right = (torch.from_numpy(whole(self.files, t, self.label, self.name)).float() for t in (source.left, source.right))
        if source.transposed:
            left, right = right.T, left.T
        return (left * source.scaling).contiguous(), right.contiguous()
