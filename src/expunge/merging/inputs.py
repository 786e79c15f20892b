"""Describes the inputs of a merge: tensors of model folders, LoRA adapters and files of differences."""

from pathlib import Path
from typing import NamedTuple

from expunge.merging.positions import Stored


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
