"""Opens the model that a run starts from: a complete model, or one with an adapter that an earlier run trained.

    start is              training            training --lora               guard                    edit in place
    weights               from them           a new adapter on them         fitted on them           of them
    adapter               from their sum      trains that adapter further   fitted on their sum      of their sum

Methods made of stages work on files and need a complete model. A guard is refused: the weights below it are its base model's, and
training them would silently lose the guard.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.artifact import Base, Manifest, artifact_folder, base_fingerprint, base_of, find_base, read_manifest
from expunge.errors import ExpungeError
from expunge.loading import Loading, open_model
from expunge.models.folder import TOKENIZER_FILES
from expunge.models.load import (
    DeviceMap,
    DType,
    Size,
    in_cache,
    load_model,
    load_tokenizer,
    model_folder,
    model_size,
    tokenizer_fingerprint,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Start:
    """The model of a run, found but not loaded."""

    place: str
    """Folder of the artifact or of the model, or a hub id."""
    revision: str | None
    manifest: Manifest | None
    """For an artifact of expunge; None for a plain model."""

    @property
    def is_adapter(self) -> bool:
        return self.manifest is not None and self.manifest.kind == "adapter"

    def tokenizer(self, *, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
        """Loads the artifact's own tokenizer, or that of the base model if an adapter has none."""
        place, revision = self._tokenizer_place()
        return load_tokenizer(place, revision=revision, trust_remote_code=trust_remote_code)

    def _tokenizer_place(self) -> tuple[str, str | None]:
        if self.is_adapter and not any((Path(self.place) / name).is_file() for name in TOKENIZER_FILES):
            return self._below()
        return self.place, self.revision

    def at_hand(self) -> bool:
        """Returns whether its files are on this machine; a hub model's are once it was loaded."""
        return os.path.isdir(self.place) or in_cache(self.place, self.revision)

    def fingerprint(self) -> str:
        """Computes a sha256 over what its answers depend on: weights, or an adapter and the weights below it."""
        return base_fingerprint(self.place, self.revision)

    def tokenizer_fingerprint(self) -> str:
        """Computes a sha256 over the files of its tokenizer."""
        place, revision = self._tokenizer_place()
        return tokenizer_fingerprint(place, revision=revision)

    def size(self, *, trust_remote_code: bool) -> Size:
        """Returns the size of the model without the adapter, by its config; nothing is loaded."""
        place, revision = self._below() if self.is_adapter else (self.place, self.revision)
        return model_size(place, revision=revision, trust_remote_code=trust_remote_code)

    def load(
        self, dtype: DType, *, device_map: DeviceMap | None = None, trust_remote_code: bool = False, keep_adapter: bool = False
    ) -> "PreTrainedModel":
        """Loads a complete model: an adapter is merged into the weights, or kept trainable with `keep_adapter`."""
        if not self.is_adapter:
            return load_model(
                self.place, dtype=dtype, revision=self.revision, device_map=device_map, trust_remote_code=trust_remote_code
            )
        model = open_model(self.place, Loading(dtype, device_map=device_map, trust_remote_code=trust_remote_code)).model
        if keep_adapter:
            return model
        merged: PreTrainedModel = model.merge_and_unload().eval()  # type: ignore[operator]
        return merged

    def base(self, out: Path, sha256: str, *, adapter_goes_on: bool = False) -> Base:
        """Returns the base model of what the run makes in `out`; for an adapter that is trained further, its own base.

        sha256: `fingerprint()`
        """
        if adapter_goes_on:
            place, revision = self._below()
            return base_of(place, out, base_fingerprint(place, revision), revision)
        return base_of(self.place, out, sha256, self.revision)

    def require_complete(self, method: str) -> None:
        """Raises ExpungeError for an adapter, with the command that makes a complete model of it."""
        if self.is_adapter:
            raise ExpungeError(
                f"{method} works on the files of a complete model, and {self.place} is an adapter; make one of it first: "
                f"expunge merge task_arithmetic --base {self._below()[0]} --models {self.place} --out MERGED"
            )

    @property
    def folder(self) -> Path:
        """Returns the files of a complete model. A hub model must have been loaded before."""
        return model_folder(self.place, revision=self.revision)

    def _below(self) -> tuple[str, str | None]:
        """Returns place and revision of the model below the adapter."""
        assert self.manifest is not None
        return find_base(Path(self.place), self.manifest, None)


def find_start(model: str, revision: str | None = None) -> Start:
    """Finds the start model of a name on the command line: a run or artifact of expunge, a model folder, a hub id.

    Raises ExpungeError for a guard.
    """
    folder = artifact_folder(model)
    if folder is None:
        return Start(model, revision, None)
    manifest = read_manifest(folder)
    if manifest.kind == "guard":
        raise ExpungeError(
            f"{folder} is a guard, which leaves the weights of its base model as they are and would be lost; start from that "
            f"model, {manifest.base.path}"
        )
    return Start(str(folder), None, manifest)
