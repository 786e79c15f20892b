"""Writes and verifies artifacts: the folder with a run's result, its checksums and its card.

    artifact/  expunge.json   kind, method with all its fields, base model and its hash, claim level, sha256 of every file
               README.md      the model card
               weights: a complete Hugging Face folder | adapter: PEFT's two files | guard: guard.safetensors

An artifact is renamed into place when it is complete; an earlier one stays until then.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from expunge.errors import ExpungeError, reason
from expunge.folders import GUARD_FILE, unfinished
from expunge.methods.base import Spec
from expunge.models.checkpoint import Checkpoint
from expunge.models.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, file_hash, folder_kind, read_model_folder
from expunge.models.load import looks_local, model_fingerprint
from expunge.records import Record, folder_made, follow_umask, write_json, write_text

Kind = Literal["weights", "adapter", "guard"]
Claim = Literal["not yet shown", "L0"]

CLAIMS: dict[Claim, str] = {
    "not yet shown": "Whether anything was forgotten, scores have to show; a report derives from them what holds.",
    "L0": "Guarded: the weights are unchanged and the knowledge is still in them. Nothing beyond it is claimed.",
}
"""What an artifact itself may claim. Higher levels need scores and attacks, and are derived from them when shown."""


def claim_of(kind: Kind) -> Claim:
    """Returns what an artifact may claim before anything was measured."""
    return "L0" if kind == "guard" else "not yet shown"


class Base(Record):
    """The model that an artifact was made from."""

    path: str
    """A folder (absolute, so that it is found from anywhere) or a hub id."""
    sha256: str
    """Empty for an adapter made from other adapters without access to the base."""
    revision: str | None = None
    beside: str | None = None
    """The base's folder relative to the artifact's, in case both were moved together."""


def base_of(path: str | Path, out: Path, sha256: str, revision: str | None = None) -> Base:
    """Makes the record of the base model of an artifact in `out`/artifact, with the hash of its weights."""
    if not os.path.isdir(path):
        return Base(path=str(path), sha256=sha256, revision=revision)
    place = os.path.abspath(path)
    return Base(path=place, sha256=sha256, beside=os.path.relpath(place, os.path.abspath(out / "artifact")))


Place = tuple[str, str | None]
"""A folder or a hub id, and the revision of the latter."""


def base_fingerprint(path: str, revision: str | None = None, below: Place | None = None) -> str:
    """Computes a sha256 over what a base model's answers depend on: its weights, or an adapter and the weights below it.

    below  the weights below the adapter, if they are no longer at their recorded place
    """
    folder = artifact_folder(path)
    if folder is None or (manifest := read_manifest(folder)).kind == "weights":
        return model_fingerprint(path if folder is None else str(folder), revision=revision)
    return artifact_fingerprint(manifest, base_fingerprint(*(below or find_base(folder, manifest, None))))


class Manifest(Record):
    """The content of expunge.json."""

    format: Literal[1] = 1
    expunge: str
    """Version of expunge that wrote it."""
    kind: Kind
    family: str
    method: dict[str, Any]
    """The spec: `name` and every field."""
    claim: str
    """The result of `claim_of`; `verify` refuses any other value, since it was edited by hand."""
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
    notes: str | Callable[[Path], str] = "",
    then: str = "go on with --resume, which trains no step again",
) -> Manifest:
    """Lets `write` fill a temporary folder, adds the card and expunge.json, and renames it into place.

    notes  Markdown for the card, e.g. what was trained on what; never text of the forget set. A function is given the filled
           folder, for what is only known then
    then   what to do once there is room, after an error

    Raises ExpungeError if the artifact cannot be written; an earlier one is then unchanged.
    """
    beside = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        with folder_made(folder.parent):
            try:
                manifest = _filled(beside, kind, spec, base, write, notes)
                _replace(beside, folder)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise ExpungeError(
            f"the artifact {folder} could not be written ({reason(error)}); what was there before is untouched: make room, then "
            f"{then}"
        ) from error
    return manifest


def _filled(
    beside: Path, kind: Kind, spec: Spec, base: Base, write: Callable[[Path], None], notes: str | Callable[[Path], str]
) -> Manifest:
    """Fills the temporary folder of an artifact, its manifest last."""
    from expunge import __version__

    beside.mkdir()
    write(beside)
    if kind == "adapter":
        _name_base(beside, base)
    _check_written(beside, kind)
    write_text(beside / "README.md", _card(kind, spec, base, notes if isinstance(notes, str) else notes(beside)))
    follow_umask(beside)
    files = {p.relative_to(beside).as_posix(): file_hash(p) for p in sorted(beside.rglob("*")) if p.is_file()}
    manifest = Manifest(
        expunge=__version__,
        kind=kind,
        family=spec.family,
        method=spec.model_dump(mode="json"),
        claim=claim_of(kind),
        base=base,
        files=files,
    )
    write_json(beside / "expunge.json", manifest)
    return manifest


def _name_base(folder: Path, base: Base) -> None:
    """Writes the base into PEFT's own configuration, for users who load the adapter with PEFT alone."""
    path = folder / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, config | {"base_model_name_or_path": base.path, "revision": base.revision})


def _check_written(folder: Path, kind: Kind) -> None:
    """Raises ExpungeError unless the folder can be loaded as its kind."""
    if kind == "weights":
        read_model_folder(folder)
    elif kind == "adapter":
        if folder_kind(folder) != "adapter" or not (folder / ADAPTER_WEIGHTS).is_file():
            raise ExpungeError(f"{folder} was not written as an adapter; nothing was put in place")
        Checkpoint(folder / ADAPTER_WEIGHTS)
    else:
        Checkpoint(folder / GUARD_FILE)


def read_manifest(folder: Path) -> Manifest:
    """Reads expunge.json. Raises ExpungeError if it is not a manifest of this version."""
    path = folder / "expunge.json"
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, ValueError) as error:
        raise ExpungeError(
            f"{path} is not a manifest of this version of expunge ({_first_line(error)}); run `expunge unlearn` again"
        ) from error


def artifact_folder(path: str | Path) -> Path | None:
    """Returns the artifact inside a run folder, the artifact folder itself, or None for a plain model or hub id."""
    for folder in (Path(path) / "artifact", Path(path)):
        if (folder / "expunge.json").is_file():
            return folder
    return None


def verify(path: str | Path) -> Manifest:
    """Recomputes every checksum of an artifact and returns its manifest.

    path  a run folder or an artifact

    Raises ExpungeError that names the first file that is missing, changed or not listed, and for a claim or a kind that the
    files do not support.
    """
    folder = artifact_folder(path)
    if folder is None:
        raise ExpungeError(unfinished(path) or f"{path} holds no expunge.json; give the folder of an artifact or of a run")
    manifest = read_manifest(folder)
    if manifest.claim != claim_of(manifest.kind):
        raise ExpungeError(
            f"{folder / 'expunge.json'} claims {manifest.claim} of an artifact of kind {manifest.kind}; it was changed by hand"
        )
    _check_kind(folder, manifest)
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"expunge.json"}
    check_present(folder, manifest)
    for name in manifest.files:
        check_sum(folder, manifest, name)
    if extra := sorted(present - set(manifest.files)):
        raise ExpungeError(f"{folder / extra[0]} is not listed in expunge.json; somebody added it after the artifact was written")
    return manifest


def _check_kind(folder: Path, manifest: Manifest) -> None:
    """Checks that the files are those of the manifest's kind, and that the card makes the claim of that kind and no other."""
    try:
        _check_written(folder, manifest.kind)
    except ExpungeError as error:
        raise ExpungeError(f"{folder} does not hold what its expunge.json says, an artifact of kind {manifest.kind}") from error
    card = folder / "README.md"
    claims = [line for line in card.read_text(encoding="utf-8").splitlines() if "Claim:" in line] if card.is_file() else []
    if claims not in ([], [_claim_line(manifest.kind)]):
        raise ExpungeError(f"{card} makes another claim than expunge wrote: {claims[0][:80]}; it was changed by hand")


def _claim_line(kind: Kind) -> str:
    return f"**Claim: {claim_of(kind)}.** {CLAIMS[claim_of(kind)]} What its scores and attacks support: `expunge verify PATH`."


def check_present(folder: Path, manifest: Manifest) -> None:
    """Raises ExpungeError if a listed file is missing."""
    for name in manifest.files:
        if not (folder / name).is_file():
            raise ExpungeError(f"{folder / name} is listed in expunge.json and missing; the artifact is not complete")


def check_sum(folder: Path, manifest: Manifest, name: str) -> None:
    """Raises ExpungeError if a file differs from its checksum."""
    if file_hash(folder / name) != manifest.files[name]:
        raise ExpungeError(f"{folder / name} differs from its checksum in expunge.json; do not use this artifact")


def artifact_fingerprint(manifest: Manifest, base_sha256: str | None) -> str:
    """Computes a hash over the listed files except the card, and over the base; for a guard also over its method's fields."""
    files = sorted((name, digest) for name, digest in manifest.files.items() if name != "README.md")
    method = manifest.method if manifest.kind == "guard" else None
    return hashlib.sha256(json.dumps([manifest.kind, files, method, base_sha256], sort_keys=True).encode()).hexdigest()


def find_base(folder: Path, manifest: Manifest, given: str | None, *, may_be_given: bool = False) -> Place:
    """Returns (place, revision) of the base model: as given, as recorded, or relative to the artifact as it was then. Raises
    ExpungeError if it is not found, with the advice to give it only where it may be given."""
    base = manifest.base
    if given is not None:
        return given, None
    places = [base.path]
    if base.beside is not None:
        places.append(os.path.normpath(folder / base.beside))
    if not os.path.isabs(base.path):  # an artifact of an older version, made from somewhere above
        places += [str(above / base.path) for above in folder.absolute().parents]
    there = next((place for place in places if os.path.isdir(place)), None)
    if there is None and (base.beside is not None or looks_local(base.path)):
        elsewhere = ", or say where it is with --base (evaluate and export have it; in Python: load(..., base=...))"
        raise ExpungeError(
            f"the base model of the {manifest.kind} {folder} was {base.path}, which is not there any more; put it or a link to "
            f"it back there{elsewhere if may_be_given else ''}"
        )
    return (there, None) if there else (base.path, base.revision)


def find_below(folder: Path, manifest: Manifest, given: str | None) -> tuple[Place, ...]:
    """Returns the base model of an adapter or a guard and, for a guard on an adapter, the model below that. A model that is given
    is the latter's if it is no adapter itself. Raises ExpungeError if one of them is not found."""
    if given is not None and manifest.kind == "guard" and _adapter(given) is None:
        recorded = manifest.base.path, os.path.normpath(folder / (manifest.base.beside or ""))
        if (adapter := next((place for place in recorded if _adapter(place) is not None), None)) is not None:
            return (adapter, None), (given, None)
    first = find_base(folder, manifest, given, may_be_given=True)
    if (inner := _adapter(first[0])) is None:
        return (first,)
    return first, find_base(inner, read_manifest(inner), None, may_be_given=manifest.kind == "guard" and given is None)


def _adapter(place: str) -> Path | None:
    """Returns the artifact at a place if it is an adapter."""
    folder = artifact_folder(place)
    return folder if folder is not None and read_manifest(folder).kind == "adapter" else None


def _replace(beside: Path, folder: Path) -> None:
    """Replaces a folder by two renames: at any time either the old or the new artifact is complete, under one of two names."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(beside, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _card(kind: Kind, spec: Spec, base: Base, notes: str) -> str:
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

{_claim_line(kind)}

Load: `model, tokenizer = expunge.load(PATH)`{elsewhere}.

| field | value |
|---|---|
{fields}

Source: {type(spec).paper}. Formula: `{type(spec).formula}`. Base model hash: `{base.sha256}`.

{notes}

Publishing this artifact together with its base model shows by their difference what was forgotten.
"""


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
