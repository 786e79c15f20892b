"""Writes model folders: weights, configuration, tokenizer and text format."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from torch import Tensor, nn

from expunge.data.format import Format, save_format
from expunge.errors import ExpungeError
from expunge.models.checkpoint import Checkpoint, os_error
from expunge.models.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_model_folder
from expunge.records import follow_umask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    format: Format | None,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a complete model (or, for a model with LoRA, PEFT's two files), its tokenizer and its text format into `folder`.

    weights  the gathered weights, if those of the model are sharded

    The headers of the written files are read back. Raises OSError if they cannot be written, and ExpungeError if weights are
    missing in them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with os_errors(folder):
        model.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
    (folder / "README.md").unlink(missing_ok=True)  # PEFT writes an empty card
    save_tokenizer(folder, tokenizer)
    if format is not None:
        save_format(folder, format)
    follow_umask(folder)
    check_saved(folder, model, weights)


def save_tokenizer(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Writes a tokenizer's files. Raises OSError if they cannot be written."""
    with os_errors(folder):
        tokenizer.save_pretrained(folder)


@contextmanager
def os_errors(folder: Path) -> Iterator[None]:
    """Context manager that turns what safetensors and tokenizers raise on a full disk into OSError: an error of its own, and a
    plain Exception."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SafetensorError) or type(error) is Exception:
            raise os_error(error, folder) from error
        raise


def model_bytes(model: nn.Module) -> int:
    """Computes the size of a model's weights on disk; weights that share memory count once."""
    distinct = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    return sum(parameter.numel() * parameter.element_size() for parameter in distinct.values())


def check_saved(folder: Path, model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> None:
    """Raises ExpungeError unless the folder holds a configuration and every weight of the model.

    Elements are counted instead of comparing names: transformers stores some models under other names, and fused weights in
    parts. Weights that share memory (a tied head) count once.
    """
    if hasattr(model, "peft_config"):
        _check_adapter(folder, model)
        return
    read_model_folder(folder)
    stored = Checkpoint(folder)
    held = dict(model.named_parameters(remove_duplicate=False)) if weights is None else weights
    distinct = {tensor.data_ptr(): tensor for tensor in held.values()}
    expected = sum(tensor.numel() for tensor in distinct.values())
    found = sum(_elements(entry.shape) for entry in stored.entries.values())
    if found < expected:
        lost = [name for name in held if name not in stored]
        named = f", such as {lost[0]}" if lost else ""
        raise ExpungeError(
            f"{folder} was written with {found:,} of the model's {expected:,} weights{named}; it is of no use, and nothing was "
            "put in place: this is a fault of expunge or of transformers, please report it with the model's type"
        )


def _check_adapter(folder: Path, model: nn.Module) -> None:
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ExpungeError(f"{folder} was written without {name}; it is of no use, and nothing was put in place")
    factors = sum(1 for name, _ in model.named_parameters() if "lora_" in name or "ia3_l" in name)
    stored = Checkpoint(folder / ADAPTER_WEIGHTS)
    if sum(1 for name in stored if "lora_" in name or "ia3_l" in name) < factors:
        raise ExpungeError(f"{folder} was written with {len(stored)} of {factors} factors; nothing was put in place")


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
