"""Opens the tensors behind a model argument: a folder, a run of expunge, a hub id, an adapter, a file of differences."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from expunge.artifact import artifact_folder, read_manifest
from expunge.errors import ExpungeError
from expunge.merging.adapters import read_adapter
from expunge.merging.inputs import Difference, Source, Values
from expunge.merging.positions import Stored, metadata, stored_tensors
from expunge.models.folder import folder_kind, read_model_folder
from expunge.models.load import looks_local

DELTA = "delta.safetensors"
DELTA_KEY = "expunge_delta"
"""Metadata key of a file of differences: JSON, name -> sha256 of the base tensor."""

HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
"""Ends of the names of tensors whose rows stand for tokens, over the model types of transformers."""

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""Names of the number of layers in a model's configuration."""


class BaseModel(NamedTuple):
    label: str
    folder: Path
    tensors: dict[str, Stored]
    config: dict[str, Any]


def resolve(path: str) -> Path:
    """Returns the folder or file behind a path, a run of expunge or a hub id. Raises ExpungeError if there is none, or it
    changes no weights."""
    if (folder := artifact_folder(path)) is not None:
        if (kind := read_manifest(folder).kind) == "guard":
            raise ExpungeError(f"{path} is a {kind}, which changes no weights; there is nothing in it to merge")
        return folder
    if Path(path).exists():
        return Path(path)
    if looks_local(path):
        raise ExpungeError(f"there is no model {path}; check the path")
    return _from_hub(path)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ExpungeError(
            f"there is no folder {name}, and as a hub id it cannot be fetched ({type(error).__name__}); "
            "check the spelling and the network"
        ) from error


def open_base(path: str) -> BaseModel:
    found = read_model_folder(resolve(path))
    base = BaseModel(path, found.path, stored_tensors(found.path), found.config)
    _check_described(base)
    return base


def _check_described(base: BaseModel) -> None:
    """Raises ExpungeError if the base lacks layers or tokens that its config describes: its merge could not be loaded."""
    text = base.config.get("text_config") or base.config
    described = next((text[name] for name in LAYERS if isinstance(text.get(name), int)), None)
    numbers = {int(part) for name in base.tensors for part in name.split(".") if part.isdecimal()}
    if described is not None and numbers and "encoder_layers" not in text and max(numbers) + 1 < described:
        raise ExpungeError(
            f"{base.label} holds {max(numbers) + 1} layers, and its config.json describes {described}; copy the folder again"
        )
    tables = [name for name in base.tensors if name.endswith(EMBEDDINGS)]
    tokens = text.get("vocab_size")
    if len(tables) == 1 and isinstance(tokens, int) and (rows := base.tensors[tables[0]].shape[0]) != tokens:
        raise ExpungeError(
            f"{base.label} holds {rows} rows of {tables[0]}, and its config.json says vocab_size {tokens}; give the config.json "
            "that belongs to the weights"
        )


def open_source(path: str, base: BaseModel) -> Source:
    """Opens one model of the merge; names and shapes of partial ones are checked here, of complete ones in the plan."""
    found = resolve(path)
    if found.is_file() or (found / DELTA).is_file():
        return _delta(path, found if found.is_file() else found / DELTA, base.tensors)
    if folder_kind(found) == "adapter":
        return read_adapter(path, found, base.tensors)
    if (found / "config.json").is_file():
        read_model_folder(found)
    inputs = {name: Values(tensor) for name, tensor in stored_tensors(found).items()}
    return Source(path, found, dict(inputs), complete=True, base_sha256={})


def _delta(label: str, file: Path, base: Mapping[str, Stored]) -> Source:
    note = metadata(file) if file.suffix == ".safetensors" else {}
    if DELTA_KEY not in note:
        raise ExpungeError(
            f"{file} is not a file of differences of expunge; give a model folder, or write one with --write delta"
        )
    hashes: dict[str, str] = json.loads(note[DELTA_KEY])
    stored = stored_tensors(file)
    for name, tensor in stored.items():
        if name not in base or base[name].shape != tensor.shape:
            here = f"of shape {base[name].shape}" if name in base else "missing"
            raise ExpungeError(
                f"{label} holds a difference of {name} {tensor.shape}, which is {here} in the base; give its own base"
            )
    return Source(label, file, {n: Difference(t) for n, t in stored.items()}, complete=False, base_sha256=hashes)


def tied_pair(config: Mapping[str, Any], names: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns (output head, embedding) of a model whose configuration ties them and that stores both."""
    text = config.get("text_config") or {}
    if not config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)):
        return None
    heads = [n for n in names if n.endswith(HEADS)]
    embeddings = [n for n in names if n.endswith(EMBEDDINGS)]
    return (heads[0], embeddings[0]) if len(heads) == 1 and len(embeddings) == 1 else None


def is_vocabulary(name: str) -> bool:
    """Returns whether the rows of a tensor stand for tokens."""
    return name.endswith(HEADS + EMBEDDINGS)
