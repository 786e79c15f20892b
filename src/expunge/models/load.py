"""Loads a model and its tokenizer from a folder or the hub, in an explicitly given dtype."""

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from expunge.devices import computes, default_device, let_segments_grow, out_of_memory
from expunge.errors import ExpungeError
from expunge.models.folder import (
    CONFIG,
    GENERATION,
    check_tokenizer_folder,
    hash_files,
    read_model_folder,
    tokenizer_files,
    two_templates,
)

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
"""How accelerate spreads the layers of a model over GPUs (and, if these are full, CPU memory)."""


def causal_model(model: "nn.Module") -> "PreTrainedModel":
    """Returns the transformers model inside wrappers (PEFT, DDP, `torch.compile`; FSDP2 wraps nothing).

    It is the first `PreTrainedModel` in the module tree. Raises ExpungeError if there is none.
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
    device: "str | torch.device | None" = None,
    device_map: DeviceMap | None = None,
    trust_remote_code: bool = False,
) -> "PreTrainedModel":
    """Loads a causal language model in evaluation mode, weights from safetensors only.

    path               a local folder or a hub id
    dtype              `auto` is the dtype of the checkpoint, or float32 on a processor without arithmetic for it (if the weights
                       then take at most a quarter of the memory); there is no default, because transformers 5 takes the
                       checkpoint's dtype where version 4 took float32
    device             default: cuda when there is one, else cpu
    device_map         instead of one device: spreads the layers over several, for models too large for one
    trust_remote_code  runs Python code that comes with the model; off unless asked for

    Raises ExpungeError, with advice, if the model cannot be loaded, is quantized or lacks weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if local := _local(path):
        read_model_folder(local)
    let_segments_grow()
    where = torch.device(device) if device is not None else default_device()
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        if getattr(config, "quantization_config", None):  # of a hub model, whose files are not here yet
            raise ExpungeError(f"{path} is quantized, and codes cannot be trained; give the model as it was before quantization")
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                revision=revision,
                dtype=dtype,
                device_map=device_map,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below by name
            )
        model: PreTrainedModel
        model, info = loaded
        _check_shapes(path, info)
        if device_map is None:
            model.to(where)  # type: ignore[arg-type]
            if dtype == "auto":
                _widen(model, path, where)
    except ExpungeError:
        raise
    except torch.OutOfMemoryError as error:
        raise out_of_memory(f"while loading {path} to {where}", "give a smaller dtype, or --device-map auto") from error
    except Exception as error:  # whatever transformers, tokenizers and their libraries raise of a folder is the folder's fault
        raise ExpungeError(f"cannot load a model from {path}: {_first_line(error)}; {_advice(path)}") from error
    if local is None:
        read_model_folder(_snapshot(path, revision))
    _check_loaded(path, info)
    _say_untied(path, model)
    model.eval()
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager in which transformers prints no tables of weights that it misses: they are checked by name."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _widen(model: "PreTrainedModel", path: str, device: "torch.device") -> None:
    """Converts weights of a dtype that the processor cannot compute in to float32, with a warning, if there is memory for it."""
    needed = 4 * sum(p.numel() for p in model.parameters())
    if computes(model.dtype, device) or needed > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4:
        return
    name = str(model.dtype).removeprefix("torch.")
    model.float()
    model.config.dtype = model.dtype
    warnings.warn(
        f"{path} is stored in {name}, which this processor converts at every step; computing in float32, many times faster here "
        f"(--dtype {name} keeps it)",
        stacklevel=4,
    )


class Size(NamedTuple):
    """How large a model is."""

    weights: int
    """Tied ones once."""
    blocks: int


def model_size(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Size:
    """Counts weights and blocks by the model's config, without reading a weight."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if local := _local(path):
        read_model_folder(local)
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # as above
        raise ExpungeError(f"cannot read the config of {path}: {_first_line(error)}; {_advice(path)}") from error
    return Size(sum(p.numel() for p in model.parameters()), int(config.get_text_config().num_hidden_layers))


def _check_shapes(path: str, info: Mapping[str, Any]) -> None:
    if wrong := sorted(info["mismatched_keys"]):
        name, stored, wanted = wrong[0]
        raise ExpungeError(
            f"{path} holds {len(wrong)} weights of another shape than its config.json says, such as {name}: {list(stored)} where "
            f"{list(wanted)} is described; give the config.json that belongs to the weights"
        )


def _check_loaded(path: str, info: Mapping[str, Any]) -> None:
    if missing := sorted(info["missing_keys"]):  # transformers would go on with random numbers in their place
        raise ExpungeError(f"{path} lacks {len(missing)} of its model's weights, such as {missing[0]}; copy or save it again")
    if unread := sorted(info["unexpected_keys"]):
        warnings.warn(
            f"{len(unread)} weights of {path}, such as {unread[0]}, have no place in the model that its config.json describes; "
            "they are left out, here and in everything made from it",
            stacklevel=3,
        )


def _say_untied(path: str, model: "PreTrainedModel") -> None:
    """Warns if there is a separate output head although the configuration ties it to the embeddings: loaders differ in their
    choice."""
    config, head, table = model.config.get_text_config(decoder=True), model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(config, "tie_word_embeddings", False) and getattr(model.config, "tie_word_embeddings", True)
    if tied and head is not None and head.weight is not table.weight and head.weight.shape == table.weight.shape:  # type: ignore[union-attr]
        warnings.warn(
            f"the config.json of {path} ties the output head to the embeddings, and its weights have a head of their own, which "
            "is used; other programs take the embeddings: set tie_word_embeddings to false",
            stacklevel=3,
        )


def load_tokenizer(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer in a model's folder, or in an adapter's, which has no config.json. Raises ExpungeError if it
    cannot."""
    from transformers import AutoTokenizer

    if local := _local(path):
        if (local / CONFIG).is_file():
            read_model_folder(local)
        check_tokenizer_folder(local)
        if two_templates(local):
            warnings.warn(
                f"{path} holds two different chat templates, in chat_template.jinja and in tokenizer_config.json; the first is "
                "used, and programs of before 2025 use the second: remove the one that is not wanted",
                stacklevel=3,
            )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        tokenizer("a")  # some settings are read at the first text
    except Exception as error:  # tokenizers raises plain exceptions, of a file of a newer version for one
        raise ExpungeError(f"cannot load a tokenizer from {path}: {_first_line(error)}; {_advice(path)}") from error
    _same_each_time(path, tokenizer)
    return tokenizer


def _same_each_time(path: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Switches dropout of merges off, a setting of training in tokenizer.json, with which each call gives other tokens."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if model is not None and getattr(model, "dropout", None):
        warnings.warn(
            f"the tokenizer of {path} drops {model.dropout:.0%} of its merges at random (dropout in tokenizer.json), so that a "
            "text would be other tokens each time; it is switched off",
            stacklevel=3,
        )
        model.dropout = None


def looks_local(path: str) -> bool:
    """Returns whether a path can only be a local one: a hub id has at most one slash and starts with neither . nor / nor ~."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path


def _local(path: str) -> Path | None:
    """Returns the folder that a path names; None if it can only be a hub id."""
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path):
        raise ExpungeError(f"{path} is a file; give the folder that holds config.json and the weights")
    if looks_local(path):
        raise ExpungeError(f"there is no model folder {path}; check the path")
    return None


def model_folder(path: str, *, revision: str | None = None) -> Path:
    """Returns the folder of a model: the path itself, or the snapshot of a hub id in the local cache."""
    return _local(path) or _snapshot(path, revision)


def model_fingerprint(path: str, *, revision: str | None = None) -> str:
    """Computes a sha256 over config.json and the weight files (names and contents, sorted by name) of a model folder.

    A hub id stands for its snapshot folder in the local cache, so the model must have been loaded before.
    """
    folder = read_model_folder(model_folder(path, revision=revision))
    return hash_files(folder.path, folder.files)


def tokenizer_fingerprint(path: str, *, revision: str | None = None) -> str:
    """Computes a sha256 over the files of a folder's tokenizer and its chat templates."""
    folder = model_folder(path, revision=revision)
    return hash_files(folder, list(tokenizer_files(folder)))


def model_identity(path: str, *, revision: str | None = None) -> str:
    """Computes a sha256 over everything in a model folder that its answers depend on: config.json and weights, the tokenizer and
    its templates, the end tokens of its generation config."""
    parts = model_fingerprint(path, revision=revision), reading_fingerprint(model_folder(path, revision=revision))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def reading_fingerprint(folder: Path) -> str:
    """Computes a sha256 over the files of a folder that say how its model is asked and where its answers end: the tokenizer, chat
    templates, the generation config."""
    return hash_files(folder, [file for file in (folder / GENERATION, *tokenizer_files(folder)) if file.is_file()])


def in_cache(path: str, revision: str | None = None) -> bool:
    """Returns whether the files of a hub model are in the local cache."""
    try:
        return any(_snapshot(path, revision).glob("*.safetensors"))
    except ExpungeError:
        return False


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
