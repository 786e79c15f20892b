"""Model and tokenizer from a folder or the hub; the dtype is said, never guessed."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from expunge.errors import ExpungeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
"""How accelerate spreads the layers of a model over accelerators (and, where these are full, the processor's memory)."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PICKLES = ("*.bin", "*.pt", "*.pth")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def causal_model(model: nn.Module) -> "PreTrainedModel":
    """The transformers model inside whatever wraps it (PEFT, DDP, `torch.compile`; FSDP2 wraps nothing).

    Wrappers are `nn.Module`s around it, so it is the first `PreTrainedModel` in the module tree, outermost first.
    """
    from transformers import PreTrainedModel

    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise ExpungeError(f"{type(model).__name__} holds no transformers model; pass a model that load_model returned")


def load_model(
    path: str,
    *,
    dtype: DType,
    revision: str | None = None,
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    trust_remote_code: bool = False,
) -> "PreTrainedModel":
    """A causal language model in evaluation mode, weights from safetensors only.

    path               a local folder or a hub id
    dtype              `auto` is the dtype that the checkpoint was saved in; there is no default, because transformers 5
                       would silently take the checkpoint's dtype where version 4 took float32
    device             default: cuda when there is one, else cpu
    device_map         instead of one device: layers side by side on several, for models that no single one holds
    trust_remote_code  runs Python code that comes with the model; off unless asked for
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    _check_source(path)
    if os.path.isdir(path):
        _check_weights(Path(path))
    where = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            revision=revision,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ExpungeError(f"cannot load a model from {path}: {_first_line(error)}; {_advice(path)}") from error
    model: PreTrainedModel
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would go on with random numbers in their place
        raise ExpungeError(f"{path} lacks {len(missing)} weights of its model, such as {missing[0]}; copy or save it again")
    if device_map is None:
        model.to(where)  # type: ignore[arg-type]
    model.eval()
    return model


def load_tokenizer(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer that lies beside the model, or beside an adapter, which has no config.json of its own."""
    from transformers import AutoTokenizer

    _check_source(path, model=False)
    if os.path.isdir(path) and not any((Path(path) / name).is_file() for name in TOKENIZER_FILES):
        raise ExpungeError(
            f"{path} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save the tokenizer into the same folder"
        )
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ExpungeError(f"cannot load a tokenizer from {path}: {_first_line(error)}; {_advice(path)}") from error


def looks_local(path: str) -> bool:
    """Whether a path can only be meant as a local one: a hub id has at most one slash and starts with neither . nor / nor ~."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path


def _check_source(path: str, *, model: bool = True) -> None:
    if os.path.isdir(path):
        if model and not (Path(path) / "config.json").is_file():
            raise ExpungeError(
                f"{path} holds no config.json, so it is not a model folder; give a folder written by save_pretrained"
            )
    elif os.path.exists(path):
        raise ExpungeError(f"{path} is a file; give the folder that holds config.json and the weights")
    elif looks_local(path):
        raise ExpungeError(f"there is no model folder {path}; check the path")


def _check_weights(folder: Path) -> None:
    if any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        return
    if any(next(folder.glob(pattern), None) for pattern in PICKLES):
        raise ExpungeError(
            f"{folder} holds its weights as pickles only, which can run code when they are read; "
            "convert them once to safetensors (load with transformers, then save_pretrained) and give that folder"
        )
    raise ExpungeError(f"{folder} holds no *.safetensors weights; give a complete model folder")


def model_folder(path: str, *, revision: str | None = None) -> Path:
    """The folder of a model: the path itself, or the snapshot of a hub id in the local cache."""
    _check_source(path)
    return Path(path) if os.path.isdir(path) else _snapshot(path, revision)


def model_fingerprint(path: str, *, revision: str | None = None) -> str:
    """sha256 over config.json and the weight files (names and contents, sorted by name) of a model folder.

    A hub id stands for its snapshot folder in the local cache, so the model must have been loaded before.
    """
    folder = model_folder(path, revision=revision)
    digest = hashlib.sha256()
    files = [folder / "config.json", *sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)})]
    for file in files:
        with open(file, "rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()


def _snapshot(path: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError) as error:
        raise ExpungeError(f"{path} is neither a folder nor in the local hub cache; load the model once before") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(". ") if str(error).strip() else type(error).__name__


def _advice(path: str) -> str:
    if os.path.isdir(path):
        return "check that the folder is complete and of a type that this version of transformers knows"
    return (
        "it is not a local folder, so it was taken for a hub id: check the spelling and the network, or give a downloaded folder"
    )
