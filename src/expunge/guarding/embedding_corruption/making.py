"""Trains gates of the four kinds, and makes them from their tensors and files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from expunge.data.encode import Encoder
from expunge.errors import ExpungeError
from expunge.guarding.embedding_corruption.classifier import ClassifierGate, fine_tune
from expunge.guarding.embedding_corruption.gate import Gate, HiddenGate, TextGate, hidden_states
from expunge.guarding.embedding_corruption.training_set import TrainingSet
from expunge.models.blocks import blocks_of

CLASSIFIER = "gate"
"""Folder among the assets."""


@dataclass(frozen=True)
class Making:
    """Trains gates of one kind for one model, and makes them from their tensors and files."""

    kind: Literal["hidden", "text", "encoder", "classifier"]
    read: Callable[[str], Tensor] | None
    """hidden: from text to hidden state."""
    assets: Path | None
    """Folder of the guard's files."""
    model: str | None = None
    """encoder, classifier: folder or hub id."""
    epochs: int = 1
    seed: int = 0

    def train(self, rows: TrainingSet, *, keep: bool = True) -> dict[str, Tensor]:
        """Returns the tensors of a gate that was trained on these rows; an encoder goes to the assets.

        keep   the gate will be used; otherwise it only scores what it was not trained on

        Raises ExpungeError if a file has no place.
        """
        if self.kind == "text":
            return TextGate.fit(rows)
        if self.kind == "hidden":
            assert self.read is not None
            return HiddenGate.fit(rows, self.read)
        if self.assets is None or not keep:
            raise ExpungeError("a classifier is kept in files; fit the guard with a folder for assets")
        assert self.model is not None
        if self.kind == "encoder":
            fine_tune(self.model, rows, self.assets / CLASSIFIER, epochs=self.epochs, seed=self.seed)
        else:
            ClassifierGate(self.model).save(self.assets / CLASSIFIER)
        return {}

    def gate(self, tensors: Mapping[str, Tensor]) -> Gate:
        """Makes the gate. Raises ExpungeError if its files are not there."""
        if self.kind == "text":
            return TextGate(dict(tensors))
        if self.kind == "hidden":
            assert self.read is not None
            return HiddenGate(dict(tensors), self.read)
        if self.assets is None:
            raise ExpungeError("this guard decides by a classifier, whose files are not there; load it from its artifact")
        return ClassifierGate(self.assets / CLASSIFIER)


def reader(model: nn.Module, encoder: Encoder, layer: int | None) -> Callable[[str], Tensor]:
    """Returns a function from text to hidden state, with a cache.

    layer   the block whose output is read; None: a quarter of the depth
    """
    count = blocks_of(model).count
    states, known = hidden_states(model, encoder, max(0, count // 4 - 1) if layer is None else layer), dict[str, Tensor]()

    def read(text: str) -> Tensor:
        if text not in known:
            known[text] = states(text)
        return known[text]

    return read
