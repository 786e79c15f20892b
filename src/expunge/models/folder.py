"""Determines from its files what a model folder contains, before anything is loaded.

Every reader (transformers, the streamed merge, the fingerprint) uses these functions, so that all of them read the same
weights. An ambiguous folder is refused with a message that names the files, and so is a format that this library does not read.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from expunge.errors import ExpungeError
from expunge.models.checkpoint import CODES, INDEX, SINGLE, Checkpoint, weight_files

CONFIG = "config.json"
GENERATION = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TEMPLATES = "additional_chat_templates"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
BESIDE_TOKENIZER = ("merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
PICKLES = ("*.bin", "*.pt", "*.pth")
CODED = {"I8", "U8", "I16", "I32", "F8_E4M3", "F8_E5M2"}
"""Types, as a header names them, in which weights are stored as codes of other numbers."""
FOREIGN = ("pytorch_model*.bin", "consolidated*.safetensors", "consolidated*.pth", "model-*-of-*.safetensors")
"""Weights of a whole model that this library does not read."""
QUANTIZED = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""Files in which quantizers keep their settings if they do not write them into config.json."""


@dataclass(frozen=True)
class ModelFolder:
    """A complete model folder with plain weights."""

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    """The safetensors files that hold the weights."""
    index: Path | None
    """The index of sharded weights."""

    @property
    def files(self) -> list[Path]:
        """Returns config.json first, then the weight files, sorted by name."""
        return [self.path / CONFIG, *sorted([*self.weights, *([self.index] if self.index else [])])]


def folder_kind(folder: Path) -> Literal["model", "adapter", "nothing"]:
    """Returns the kind of a folder, by its files. Raises ExpungeError if adapter files lie beside the weights of a model:
    these may contain the adapter already, so that loading it would apply it twice."""
    adapter = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin") if (folder / name).is_file()]
    plain = (folder / SINGLE).is_file() or (folder / INDEX).is_file()
    if adapter and (plain or _other_weights(folder)):
        raise ExpungeError(
            f"{folder} holds both a model's weights and {adapter[0]}, so it cannot be told whether the adapter is merged "
            "into them already; move the adapter's files into a folder of their own"
        )
    if plain:
        return "model"
    if adapter:
        return "adapter"
    return "model" if (folder / CONFIG).is_file() else "nothing"


def _other_weights(folder: Path) -> bool:
    """Returns whether a folder holds weights of a model in another form: pickles, or safetensors of another name."""
    return any(file for pattern in FOREIGN for file in folder.glob(pattern))


def read_model_folder(folder: Path) -> ModelFolder:
    """Reads config.json and the headers of the weights; no weight is read.

    Raises ExpungeError if it is no model folder, is incomplete or quantized, or holds two sets of weights or an adapter.
    """
    kind = folder_kind(folder)
    if kind == "adapter":
        raise _without_base(folder)
    config = read_config(folder)
    _check_plain(folder, config)
    if (folder / GENERATION).is_file():  # transformers would go on without it, and so without the end tokens in it
        _read_json(folder / GENERATION)
    if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        raise _without_weights(folder)
    index, weights = weight_files(folder)
    stored = Checkpoint(folder)  # every header is read: a file that is cut off or not safetensors is named now
    _check_codes(folder, stored)
    return ModelFolder(folder, config, weights, index)


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.json of a model folder. Raises ExpungeError if it is missing or not a JSON object."""
    path = folder / CONFIG
    if not path.is_file():
        raise ExpungeError(
            f"{folder} holds no config.json, so it is not a model folder; give a folder written by save_pretrained"
        )
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExpungeError(f"{path} cannot be read as JSON ({error}); copy the folder again") from error
    if not isinstance(config, dict):
        raise ExpungeError(f"{path} holds no JSON object; copy the folder again")
    return config


def _check_plain(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises ExpungeError for quantized weights, which can be neither trained nor averaged."""
    named = next((kind for file, kind in QUANTIZED.items() if (folder / file).is_file()), None)
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        said = part.get("quantization_config") or part.get("compression_config")
        if said:
            named = str(said.get("quant_method", "of an unnamed kind")) if isinstance(said, dict) else "of an unnamed kind"
    if named is not None:
        raise ExpungeError(
            f"{folder} is quantized ({named}), and codes can be neither trained nor averaged nor compared; "
            "give the model as it was before quantization"
        )


def _check_codes(folder: Path, stored: Checkpoint) -> None:
    """Raises ExpungeError for matrices of codes, where config.json says nothing of a quantization: cast to numbers they would
    load without a word."""
    for name, entry in stored.entries.items():
        if len(entry.shape) > 1 and entry.code in CODED and name.rpartition(".")[2].endswith("weight"):
            raise ExpungeError(
                f"{folder} holds {name} as {CODES[entry.code]} codes, and its config.json does not say how they are scaled; give "
                "the model as it was before quantization"
            )


def _without_weights(folder: Path) -> ExpungeError:
    if broken := next((file for name in (SINGLE, INDEX) if (file := folder / name).is_symlink()), None):
        return ExpungeError(f"{broken} is a link to {os.readlink(broken)}, which is not there; copy the folder again")
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others:
        return ExpungeError(
            f"{folder} holds neither {SINGLE} nor {INDEX}, only {', '.join(others[:3])}; "
            "copy the missing file, or save the model again with save_pretrained"
        )
    if any(next(folder.glob(pattern), None) for pattern in PICKLES):
        return ExpungeError(
            f"{folder} holds its weights as pickles only, which can run code when they are read; "
            "convert them once to safetensors (load with transformers, then save_pretrained) and give that folder"
        )
    return ExpungeError(f"{folder} holds no *.safetensors weights; give a complete model folder")


def _without_base(folder: Path) -> ExpungeError:
    said = _read_json(folder / ADAPTER_CONFIG) if (folder / ADAPTER_CONFIG).is_file() else {}
    base = quote(str(said.get("base_model_name_or_path") or "BASE"))
    return ExpungeError(
        f"{folder} is an adapter without its base model; give the run that made it, or merge it into its base: "
        f"expunge merge task_arithmetic --base {base} --models {quote(str(folder))} --out OUT"
    )


def check_tokenizer_folder(folder: Path) -> None:
    """Raises ExpungeError if a folder has no tokenizer."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        if folder_kind(folder) == "adapter":
            raise _without_base(folder)
        raise ExpungeError(
            f"{folder} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save the tokenizer into the same folder"
        )


def two_templates(folder: Path) -> bool:
    """Returns whether a folder has one chat template in a file of its own and another in the tokenizer's configuration."""
    own, other = _own_template(folder), _listed_template(folder)
    return own is not None and other is not None and other != own


def chat_template(folder: Path) -> str | None:
    """Returns the chat template of a folder, as transformers chooses it; None without one, or with several by name."""
    own = _own_template(folder)
    return _listed_template(folder) if own is None else own


def _own_template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    try:
        return file.read_text(encoding="utf-8").strip() if file.is_file() else None
    except ValueError as error:
        raise ExpungeError(f"{file} is no text in UTF-8 ({error}); copy the folder again") from error


def _listed_template(folder: Path) -> str | None:
    file = folder / "tokenizer_config.json"
    said = _read_json(file).get("chat_template") if file.is_file() else None
    return said.strip() if isinstance(said, str) else None


def template_files(folder: Path) -> list[Path]:
    """Returns additional chat templates of a folder."""
    return sorted(file for file in (folder / TEMPLATES).glob("*.jinja") if file.is_file())


def tokenizer_files(folder: Path) -> Iterator[Path]:
    """Returns all files that a folder's tokenizer consists of, chat templates included."""
    names = sorted({*TOKENIZER_FILES, *BESIDE_TOKENIZER})
    yield from (folder / name for name in names if (folder / name).is_file())
    yield from template_files(folder)


def hash_files(folder: Path, files: list[Path]) -> str:
    """Computes a sha256 over names and contents."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {file_hash(file)}\n".encode())
    return digest.hexdigest()


Stamp = tuple[tuple[str, int, int], ...]


def stamp(path: str) -> Stamp:
    """Returns name, size and time of each file of a folder; empty for a hub id.

    A model that is kept in memory is used again only while these are the same.
    """
    files = sorted(file for file in Path(path).iterdir() if file.is_file()) if os.path.isdir(path) else []
    return tuple((file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files)


def file_hash(path: Path) -> str:
    """Computes the sha256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
