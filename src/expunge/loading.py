"""Loads a model and its tokenizer from a run, an artifact, a model folder or the hub, with its adapter or guard attached.

Checksums are recomputed while the weights are read, and the base of an adapter or a guard is compared with the recorded hash.
"""

import hashlib
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from expunge.artifact import (
    Manifest,
    Place,
    artifact_fingerprint,
    artifact_folder,
    base_fingerprint,
    check_present,
    check_sum,
    find_below,
    read_manifest,
)
from expunge.data.encode import Encoder
from expunge.data.format import default_format
from expunge.errors import ExpungeError
from expunge.folders import unfinished
from expunge.guarding import life
from expunge.methods import method_class
from expunge.methods.base import GuardingMethod
from expunge.models.checkpoint import Checkpoint
from expunge.models.folder import TOKENIZER_FILES
from expunge.models.load import DeviceMap, DType, load_model, load_tokenizer, model_folder, model_identity, reading_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WHOLE = 8 * 10**9
"""Size of an artifact, in bytes, up to which all checksums are verified before it is used, which takes some seconds."""
READ_BY_LOADERS = {".json", ".jinja", ".safetensors", ".py", ".model", ".txt", ".bin"}
"""Endings of files that would change what is loaded."""


class _Check:
    """Recomputes the checksums of an artifact in a thread while its weights are read."""

    def __init__(self, folder: Path, manifest: Manifest, whole: bool) -> None:
        self.folder, self.manifest = folder, manifest
        check_present(folder, manifest)
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).as_posix()
            if file.suffix in READ_BY_LOADERS and name not in manifest.files and name != "expunge.json" and file.is_file():
                raise ExpungeError(f"{file} is not listed in expunge.json and would change what is loaded; move it away")
        sizes = {name: (folder / name).stat().st_size for name in manifest.files}
        for name in sizes:
            if name.endswith(".safetensors"):
                Checkpoint(folder / name)  # its header says how long it has to be
            else:
                check_sum(folder, manifest, name)
        self._large = [name for name in sizes if name.endswith(".safetensors")]
        self._waits = whole or sum(sizes.values()) <= WHOLE
        self._fault: ExpungeError | None = None
        self._done = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for name in self._large:
                check_sum(self.folder, self.manifest, name)
        except (ExpungeError, OSError) as error:
            unread = ExpungeError(f"{self.folder} cannot be read ({error}); check the disk, or copy the artifact again")
            self._fault = error if isinstance(error, ExpungeError) else unread
            if self._done:
                warnings.warn(str(self._fault), stacklevel=2)

    def finish(self) -> None:
        """Raises ExpungeError for a changed file. For a very large artifact the thread continues, and warns if it finds one."""
        if self._waits:
            self._thread.join()
        self._done = True
        if self._fault is not None:
            raise self._fault


class Opened(NamedTuple):
    """A loaded model, with its identity."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    fingerprint: Callable[[], str]
    """Computes a sha256 over the content of everything that the model's answers depend on, whatever its name and place. A
    plain model is hashed when this is called."""


@dataclass(frozen=True)
class Loading:
    """How a model is loaded; the fields are the arguments of `load`."""

    dtype: DType = "auto"
    device: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    device_map: DeviceMap | None = None
    base: str | None = None
    force: bool = False
    verify: bool = False

    def weights(self, place: str, revision: str | None = None) -> "PreTrainedModel":
        """Loads the weights of a plain model."""
        return load_model(
            place,
            dtype=self.dtype,
            revision=revision,
            device=self.device,
            device_map=self.device_map,
            trust_remote_code=self.trust_remote_code,
        )


DEFAULTS = Loading()


def load(
    path: str | Path,
    *,
    dtype: DType = "auto",
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device_map: DeviceMap | None = None,
    base: str | None = None,
    force: bool = False,
    verify: bool = False,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Loads a model and its tokenizer; `.generate()` works as usual.

    path        a run folder, an artifact, a plain model folder or a hub id; revision: branch, tag or commit of a hub model
    dtype       `auto`: that in which the weights are stored, or float32 on a processor without arithmetic for it
    device      default: the GPU, if there is one
    device_map  spreads the layers over several devices, for models too large for one
    base        adapter, guard: the base model, if it is no longer at its recorded place; its hash is compared too. For a guard
                on an adapter: the adapter, or the model below it
    force       attach to a base with another hash, and only warn if a guard's canary prompts show no effect
    verify      also verify every checksum of an artifact of more than 8 GB first; those of smaller ones are always verified
    trust_remote_code   run Python code that comes with a hub model

    An adapter is attached to its base model, after the base's hash was compared with the recorded one; so is a guard, which
    stays on the model until `model.expunge_guard.detach()`.

    Raises ExpungeError for a folder that is no model, two models, or not what its manifest says.
    """
    opened = open_model(path, Loading(dtype, device, revision, trust_remote_code, device_map, base, force=force, verify=verify))
    return opened.model, opened.tokenizer


def open_model(path: str | Path, how: Loading = DEFAULTS) -> Opened:
    """Loads a model as `load` does, and returns its fingerprint too. Raises ExpungeError as `load` does."""
    base, force, revision = how.base, how.force, how.revision
    folder = artifact_folder(path)
    if folder is None:
        if (said := unfinished(path)) is not None and not os.path.isfile(os.path.join(path, "config.json")):
            raise ExpungeError(said)
        tokenizer = load_tokenizer(str(path), revision=revision, trust_remote_code=how.trust_remote_code)
        return Opened(how.weights(str(path), revision), tokenizer, lambda: model_identity(str(path), revision=revision))
    manifest = read_manifest(folder)
    check = _Check(folder, manifest, how.verify)
    own = manifest.kind != "adapter" or any((folder / name).is_file() for name in TOKENIZER_FILES)
    below = find_below(folder, manifest, base) if manifest.kind != "weights" else ()
    tokenizer = load_tokenizer(str(folder if own else below[0][0]), trust_remote_code=how.trust_remote_code)
    found = None
    if manifest.kind == "weights":
        model = how.weights(str(folder))
    else:
        if local := os.path.isdir(below[-1][0]):
            found = _checked_below(folder, manifest, below, force)
        model = _base_model(below, how.weights)
        if not local:  # a hub model has its files now
            found = _checked_below(folder, manifest, below, force)
        if manifest.kind == "adapter":
            model = _with_adapter(model, folder)
        else:
            _guard(model, folder, manifest, tokenizer, force)
    check.finish()
    return Opened(model, tokenizer, lambda: _fingerprint(manifest, found, below))


def _base_model(below: tuple[Place, ...], weights: Callable[..., "PreTrainedModel"]) -> "PreTrainedModel":
    """Loads the model that an adapter or a guard belongs to; below a guard it may be an adapter of expunge, which is merged
    in."""
    last, revision = below[-1]
    complete = artifact_folder(last)
    if complete is not None and read_manifest(complete).kind == "guard":
        raise ExpungeError(f"{complete} is a guard, which cannot be a base model; give the model below it")
    model = weights(last if complete is None else str(complete), revision)
    if len(below) == 1:
        return model
    folder = artifact_folder(below[0][0])
    assert folder is not None
    check = _Check(folder, read_manifest(folder), False)
    merged: PreTrainedModel = _with_adapter(model, folder).merge_and_unload().eval()  # type: ignore[operator]
    check.finish()
    return merged


def _fingerprint(manifest: Manifest, base_sha256: str | None, below: tuple[Place, ...]) -> str:
    """Computes a sha256 over an artifact and, for an adapter or a guard, over the weights below it and how these are read."""
    parts = [artifact_fingerprint(manifest, base_sha256)]
    parts += [reading_fingerprint(artifact_folder(place) or model_folder(place, revision=revision)) for place, revision in below]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _checked_below(folder: Path, manifest: Manifest, below: tuple[Place, ...], force: bool) -> str:
    """Returns the hash of the base model, and compares it, and of an adapter that of the model below it, with the recorded ones.
    Raises ExpungeError, or warns with `force`, if one differs."""
    if len(below) == 2:
        inner = artifact_folder(below[0][0])
        assert inner is not None
        _checked_base(inner, read_manifest(inner), below[1], None, force)
    return _checked_base(folder, manifest, below[0], below[1] if len(below) == 2 else None, force)


def _checked_base(folder: Path, manifest: Manifest, at: Place, below: Place | None, force: bool) -> str:
    """Returns the hash of the base model. Raises ExpungeError, or warns with `force`, if it differs from the recorded one."""
    found, place = base_fingerprint(*at, below), at[0]
    if not manifest.base.sha256:  # made from other adapters on a machine that did not have the base
        warnings.warn(f"the base of {folder} was not at hand when it was made, so that {place} is not checked", stacklevel=4)
    elif found != manifest.base.sha256:
        made_for = manifest.base.sha256[:12]
        said = f"the {manifest.kind} {folder} was made for a base model with hash {made_for}, but {place} has {found[:12]}"
        if not force:
            raise ExpungeError(f"{said}; give the right model with --base, or attach it all the same with --force")
        warnings.warn(said, stacklevel=4)
    return found


def _guard(model: "PreTrainedModel", folder: Path, manifest: Manifest, tokenizer: "PreTrainedTokenizerBase", force: bool) -> None:
    method = method_class(str(manifest.method["name"])).model_validate(manifest.method)
    if not isinstance(method, GuardingMethod):
        raise ExpungeError(
            f"{folder} is a guard of the method {method.method_name()}, which makes no guards; its expunge.json was edited"
        )
    life.attach(model, method, life.read(folder), Encoder(tokenizer, default_format(tokenizer)), refuse=not force)


def _with_adapter(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    from peft import PeftModel

    # PEFT places adapter weights in float32 beside a half-precision base unless told not to.
    adapted: PreTrainedModel = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False).eval()
    return adapted
