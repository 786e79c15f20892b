"""Artifacts: what a run leaves behind. One folder that explains itself, checks itself and loads like any Hugging Face model.

    artifact/  expunge.json   kind, method with all its fields, base model and its hash, claim level, sha256 of every file
               README.md      the model card
               weights: a complete Hugging Face folder | adapter: PEFT's two files | guard: guard.safetensors

An artifact appears by rename when it is complete; the one before it stays until then.
"""

import hashlib
import inspect
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from expunge import guards
from expunge.data.encode import Encoder, default_format
from expunge.errors import ExpungeError
from expunge.methods import method_class
from expunge.methods.base import GuardingMethod, Spec
from expunge.models.load import DeviceMap, DType, load_model, load_tokenizer, model_fingerprint
from expunge.records import Record, write_json, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["weights", "adapter", "guard"]
Claim = Literal["L0", "L1", "L2", "L3"]

CLAIMS: dict[Claim, str] = {
    "L0": "guarded: the weights are unchanged and the knowledge is still in them",
    "L1": "suppressed: as far as the evaluation beside it shows; nobody has tried to bring the knowledge back",
    "L2": "attack-tested: the listed attacks, within their budgets, did not bring the knowledge back",
    "L3": "exact: equal to a model that never saw the data, by construction",
}


class Base(Record):
    """The model that an artifact was made from."""

    path: str
    sha256: str
    revision: str | None = None


class Manifest(Record):
    """expunge.json."""

    format: Literal[1] = 1
    expunge: str
    """Version of expunge that wrote it."""
    kind: Kind
    family: str
    method: dict[str, Any]
    """The spec: `name` and every field."""
    claim: Claim
    base: Base
    files: dict[str, str]
    """Relative path -> sha256, of every file but this one."""


def save_artifact(
    folder: Path,
    kind: Kind,
    spec: Spec,
    base: Base,
    write: Callable[[Path], None],
    *,
    claim: Claim = "L1",
    notes: str = "",
) -> Manifest:
    """Lets `write` fill a folder beside, adds the card and expunge.json, and renames it into place.

    notes: Markdown for the card, e.g. what was trained on what; never text of the forget set.
    """
    from expunge import __version__

    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        write(beside)
        write_text(beside / "README.md", _card(kind, spec, base, claim, notes))
        files = {str(p.relative_to(beside)): sha256(p) for p in sorted(beside.rglob("*")) if p.is_file()}
        manifest = Manifest(
            expunge=__version__,
            kind=kind,
            family=spec.family,
            method=spec.model_dump(mode="json"),
            claim=claim,
            base=base,
            files=files,
        )
        write_json(beside / "expunge.json", manifest)
        _replace(beside, folder)
    except OSError as error:
        raise ExpungeError(f"the artifact {folder} could not be written ({error}); what was there before is untouched") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    path = folder / "expunge.json"
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, ValueError) as error:
        raise ExpungeError(
            f"{path} is not a manifest of this version of expunge ({_first_line(error)}); run `expunge unlearn` again"
        ) from error


def artifact_folder(path: str | Path) -> Path | None:
    """The artifact inside a run folder, the artifact folder itself, or nothing for a plain model or hub id."""
    for folder in (Path(path) / "artifact", Path(path)):
        if (folder / "expunge.json").is_file():
            return folder
    return None


def verify(path: str | Path) -> Manifest:
    """Recomputes every checksum; an error names the first file that is missing, changed or not listed."""
    folder = artifact_folder(path)
    if folder is None:
        raise ExpungeError(f"{path} holds no expunge.json; give the folder of an artifact or of a run")
    manifest = read_manifest(folder)
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"expunge.json"}
    for name, expected in manifest.files.items():
        if name not in present:
            raise ExpungeError(f"{folder / name} is listed in expunge.json and missing; the artifact is not complete")
        if sha256(folder / name) != expected:
            raise ExpungeError(f"{folder / name} differs from its checksum in expunge.json; do not use this artifact")
    if extra := sorted(present - set(manifest.files)):
        raise ExpungeError(f"{folder / extra[0]} is not listed in expunge.json; somebody added it after the artifact was written")
    return manifest


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
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A model and its tokenizer from a run folder, an artifact, a plain model folder or a hub id; `.generate()` just works.

    An adapter comes attached to its base model, after the base's hash was compared with the recorded one; so does a guard, which
    stays on the model until `model.expunge_guard.detach()`. dtype `auto` is the dtype that the weights are stored in.

    device_map  layers side by side on several devices, for models that no single one holds
    base        guard: the model to attach it to, where it is not at its recorded path any more
    force       guard: attach it to a model with another hash, and warn where its canary prompts show no effect
    """
    folder = artifact_folder(path)
    weights = partial(load_model, dtype=dtype, device=device, device_map=device_map, trust_remote_code=trust_remote_code)
    if folder is None:
        model = weights(str(path), revision=revision)
        return model, load_tokenizer(str(path), revision=revision, trust_remote_code=trust_remote_code)
    manifest = read_manifest(folder)
    if manifest.kind == "weights":
        return weights(str(folder)), load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    if manifest.kind == "adapter":
        return _load_adapter(folder, manifest, weights), tokenizer
    return _load_guard(folder, manifest, weights, tokenizer, base or manifest.base.path, force), tokenizer


Loader = Callable[..., "PreTrainedModel"]
"""`load_model` with everything but the path and the revision given."""


def _load_guard(
    folder: Path, manifest: Manifest, weights: Loader, tokenizer: "PreTrainedTokenizerBase", path: str, force: bool
) -> "PreTrainedModel":
    revision = manifest.base.revision if path == manifest.base.path else None
    method = method_class(str(manifest.method["name"])).model_validate(manifest.method)
    if not isinstance(method, GuardingMethod):
        raise ExpungeError(
            f"{folder} is a guard of the method {method.method_name()}, which makes none; its expunge.json was changed"
        )
    model = weights(path, revision=revision)
    found = model_fingerprint(path, revision=revision)
    if found != manifest.base.sha256 and not force:
        raise ExpungeError(
            f"the guard {folder} was fitted on a model with hash {manifest.base.sha256[:12]}, but {path} has {found[:12]}; "
            "give the right model, or attach it all the same with --force"
        )
    guards.attach(model, method, guards.read(folder), Encoder(tokenizer, default_format(tokenizer)), check=not force)
    return model


def _load_adapter(folder: Path, manifest: Manifest, weights: Loader) -> "PreTrainedModel":
    from peft import PeftModel

    base = manifest.base
    found = model_fingerprint(base.path, revision=base.revision)
    if found != base.sha256:
        raise ExpungeError(
            f"the adapter {folder} belongs to a base model with hash {base.sha256[:12]}, but {base.path} has {found[:12]}; "
            "put the right base model there"
        )
    model = weights(base.path, revision=base.revision)
    # PEFT places adapter weights in float32 beside a half-precision base unless told not to.
    adapted: PreTrainedModel = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False).eval()
    return adapted


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(beside: Path, folder: Path) -> None:
    """Two renames: at every instant either the old or the new artifact is there, whole, under one of two names."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(beside, folder)
    shutil.rmtree(old, ignore_errors=True)


def _card(kind: Kind, spec: Spec, base: Base, claim: Claim, notes: str) -> str:
    fields = "\n".join(f"| `{k}` | `{v}` |" for k, v in spec.model_dump(mode="json").items())
    library = {"adapter": "peft", "weights": "transformers", "guard": "expunge"}[kind]
    elsewhere = "" if kind == "guard" else f", or as any {library} model"
    origin = "" if os.path.isabs(base.path) else f"base_model: {base.path}\n"
    return f"""---
library_name: {library}
{origin}tags: [unlearning, expunge]
---
# {spec.method_name()} of {Path(base.path).name}

{inspect.getdoc(type(spec)) or ""}

**Claim {claim}**: {CLAIMS[claim]}. Nothing beyond it is claimed.

Load: `model, tokenizer = expunge.load(PATH)`{elsewhere}. Check: `expunge verify PATH`.

| field | value |
|---|---|
{fields}

Source: {type(spec).paper}. Formula: `{type(spec).formula}`. Base model hash: `{base.sha256}`.

{notes}

Publishing this artifact together with its base model shows by their difference what was forgotten.
"""


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
