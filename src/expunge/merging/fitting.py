"""Checks whether models fit together: names, shapes, dtypes, vocabularies, tied weights."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

from expunge.artifact import artifact_folder, read_manifest
from expunge.errors import ExpungeError, nearest
from expunge.merging.inputs import Input, LowRank, Source, Values
from expunge.merging.opening import EMBEDDINGS, HEADS, BaseModel, is_vocabulary, tied_pair
from expunge.merging.positions import INFINITY, Files, Stored, sha256_of
from expunge.methods.editing import EditingMethod
from expunge.models.load import model_fingerprint

Vocabulary = Literal["refuse", "base"]


def fit(source: Source, base: BaseModel, skipped: set[str], vocabulary: Vocabulary, notes: list[str]) -> dict[str, Input]:
    """Returns what a model gives for each name of the base; notes say what was left out. Raises ExpungeError, with the tensors,
    if it does not fit.

    skipped     second copies of tied weights
    vocabulary  `refuse` another number of tokens; `base`: merge the rows that both have
    """
    _check_names(source, base, skipped)
    faults: list[str] = []
    fitted: dict[str, Input] = {}
    for name, found in source.inputs.items():
        if name in skipped and source.complete:
            continue
        if name in skipped:
            raise ExpungeError(f"{source.label} changes {name}, which the base ties to its embedding; save the base untied first")
        fitted[name] = found
        mine = base.tensors[name]
        other = found.tensor if isinstance(found, Values) else mine
        if (other.code in INFINITY) != (mine.code in INFINITY):
            faults.append(f"{name} is {other.code} instead of {mine.code}")
        elif other.shape == mine.shape:
            continue
        elif is_vocabulary(name) and other.shape[1:] == mine.shape[1:]:
            fitted[name] = _common_rows(source, name, mine, other, vocabulary, notes)
        else:
            faults.append(f"{name} is {_size(other)} instead of {_size(mine)}")
    if faults:
        raise ExpungeError(
            f"{source.label} does not fit the base {base.label}: {_named(faults)}; "
            "only checkpoints of one architecture can be merged"
        )
    return fitted


def _common_rows(source: Source, name: str, mine: Stored, other: Stored, vocabulary: Vocabulary, notes: list[str]) -> Values:
    if vocabulary == "refuse":
        raise ExpungeError(
            f"{name} has {other.shape[0]} rows in {source.label} and {mine.shape[0]} in the base: their vocabularies differ; "
            "if the common tokens have the same ids, `--vocabulary base` merges their rows and keeps the base's for the rest"
        )
    rows = min(other.shape[0], mine.shape[0])
    notes.append(f"{name}: {rows} rows of {source.label} take part; it has {other.shape[0]}, the base {mine.shape[0]}")
    return Values(other._replace(shape=(rows, *other.shape[1:])))


def _check_names(source: Source, base: BaseModel, skipped: set[str]) -> None:
    missing = [n for n in base.tensors if n not in source.inputs and n not in skipped] if source.complete else []
    extra = [n for n in source.inputs if n not in base.tensors and n not in skipped]
    if missing:
        raise ExpungeError(
            f"{source.label} lacks {_named(missing)} of the base {base.label}; only checkpoints of one architecture can be merged"
        )
    if extra:
        close = nearest(extra[0], base.tensors)
        raise ExpungeError(f"{source.label} has {_named(extra)}, which the base {base.label} lacks{close}; give its own base")


def say_tied(source: Source, base: BaseModel, skipped: set[str], notes: list[str]) -> None:
    """Warns about a LoRA on a tied embedding: as an adapter it changes the input only, merged it changes the output head too.

    A tied head is recognized by not being stored: many configurations omit the flag, because true is its default.
    """
    if any(n.endswith(HEADS) and n not in skipped for n in base.tensors):
        return
    for name, found in source.inputs.items():
        if isinstance(found, LowRank) and name.endswith(EMBEDDINGS):
            note = (
                f"{source.label} is a LoRA on {name}, to which the base ties its output head: merging changes the head too, "
                "so that the result answers differently from the adapter beside its base; untie the base first to keep the head"
            )
            notes.append(note)
            warnings.warn(note, UserWarning, stacklevel=2)


def strangers(base: BaseModel, sources: Sequence[Source]) -> list[str]:
    """Warns of adapters that were trained on another base, by the hashes that expunge recorded; returns what it said."""
    folders = {source.label: artifact_folder(source.folder) for source in sources if not source.complete}
    made_for = {label: read_manifest(folder).base.sha256 for label, folder in folders.items() if folder is not None}
    known = {label: sha256 for label, sha256 in made_for.items() if sha256}
    found = model_fingerprint(str(base.folder)) if known else ""
    said = [
        f"{label} was trained on a model with hash {sha256[:12]}, and the base {base.label} has {found[:12]}: what is added "
        "is the change of another model"
        for label, sha256 in known.items()
        if sha256 != found
    ]
    for note in said:
        warnings.warn(note, UserWarning, stacklevel=3)
    return said


def tied_copies(base: BaseModel, sources: tuple[Source, ...], notes: list[str]) -> set[str]:
    """Returns the names of second copies of tied weights, which are merged and stored once. Copies that differ are two
    weights. Raises ExpungeError if a model has both weights and the base ties them."""
    skipped: set[str] = set()
    with Files() as files:
        if (pair := tied_pair(base.config, base.tensors)) and _same(files, base.tensors, pair):
            skipped.add(pair[0])
            notes.append(f"{pair[0]} is tied to {pair[1]}: merged and stored once")
        for source in sources:
            stored = {n: given.tensor for n, given in source.inputs.items() if isinstance(given, Values)}
            pair = tied_pair(base.config, stored) if source.complete else None
            if pair is None or (pair[0] in base.tensors and pair[0] not in skipped):
                continue
            if not _same(files, stored, pair):
                raise ExpungeError(
                    f"{source.label} has a {pair[0]} of its own, which the base ties to {pair[1]}; save the base untied first"
                )
            skipped.add(pair[0])
    return skipped


def _same(files: Files, tensors: Mapping[str, Stored], pair: tuple[str, str]) -> bool:
    first, second = (tensors[name] for name in pair)
    return (first.shape, first.code) == (second.shape, second.code) and sha256_of(files, first) == sha256_of(files, second)


def check_adapter(method: EditingMethod, rank: int | None, sources: tuple[Source, ...]) -> None:
    """Raises ExpungeError if the merge cannot be written as an adapter."""
    if rank is None or rank < 1:
        raise ExpungeError("--write adapter needs the rank of the new adapter: --rank 16")
    if method.measures_angle or not method.keeps_equal(len(sources)):
        raise ExpungeError(
            f"{method.method_name()} with these fields moves whole weights and has no adapter; use --write weights"
        )
    for source in sources:
        whole = [name for name, found in source.inputs.items() if not isinstance(found, LowRank)]
        if whole:
            raise ExpungeError(f"{source.label} holds the whole weight {whole[0]}, which no adapter can; use --write weights")


def _size(tensor: Stored) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _named(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} other tensors" if len(names) > 3 else "")
