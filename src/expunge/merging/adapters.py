"""Reads PEFT's LoRA folders from their two files, without building a model.

base_model.model.<module>.lora_A.weight   rank x in     delta of <module>.weight = scaling B A
base_model.model.<module>.lora_B.weight   out x rank    scaling = alpha / rank, or alpha / sqrt(rank) with rsLoRA
base_model.model.<name>                   a fully trained weight (modules_to_save, biases)
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.errors import ExpungeError, nearest
from expunge.merging.inputs import Input, LowRank, Source, Values
from expunge.merging.positions import INFINITY, Files, Stored, pieces, read_bytes, stored_tensors, widened

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PLAIN_STARTS = ("", "true", "false", "gaussian", "eva", "orthogonal", "mica")
"""Initializations that leave the base weights as they are. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, and whatever comes)
subtract their start from them, so that BA is not the difference to the original base."""
UNUSUAL = (
    *("use_dora", "target_parameters", "lora_bias", "layer_replication", "trainable_token_indices", "alora_invocation_tokens"),
    *("use_qalora", "use_bdlora", "kasa_config", "arrow_config", "monteclora_config", "velora_config"),
)
"""Fields of LoRA with which the adapter does more, or does it elsewhere, than A and B say."""


def read_adapter(label: str, folder: Path, base: Mapping[str, Stored]) -> Source:
    """Reads every weight that the adapter changes, and checks names and shapes against the base. Raises ExpungeError for
    other types of adapters, variants of LoRA, and weights that do not fit the base."""
    config = read_config(label, folder)
    if config["peft_type"] != "LORA":
        raise ExpungeError(
            f"{label} is an adapter of type {config['peft_type']}; only LoRA adapters have a weight difference to merge"
        )
    check_product(label, config)
    stored = _trained(adapter_tensors(label, folder))
    inputs: dict[str, Input] = {}
    for key in stored:
        name = key.removeprefix(PREFIX)
        module, _, factor = name.rpartition(".lora_") if ".lora_" in name else (name, "", "")
        if factor in ("A.weight", "embedding_A"):
            inputs[f"{module}.weight"] = _low_rank(label, config, module, key, stored, base)
        elif factor in ("B.weight", "embedding_B"):
            _partner(label, key, key.replace(".lora_B", ".lora_A").replace("_embedding_B", "_embedding_A"), stored)
        elif ".base_layer." in name:
            _check_copy(label, name.replace(".base_layer.", "."), stored[key], base)
        elif factor or "lora_" in name:
            raise ExpungeError(
                f"{label}: {key} belongs to a variant of LoRA that cannot be merged densely here; merge it with peft"
            )
        else:
            _known(label, name, base)
            inputs[name] = Values(stored[key])
    if not inputs:
        raise ExpungeError(f"{label} holds no adapter weights; save it again with save_pretrained")
    return Source(label, folder, inputs, complete=False, base_sha256={})


def _trained(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Leaves out the further copies of a fully trained embedding or head that PEFT saves once the vocabulary was resized: under
    the trained name (`modules_to_save`), which is the weight itself, and as it was before (`original_module`)."""
    wrapped = (".modules_to_save.", ".original_module.")
    return {
        key: tensor
        for key, tensor in stored.items()
        if not any(mark in key and key.replace(mark, ".") in stored for mark in wrapped)
    }


def read_config(label: str, folder: Path) -> dict[str, Any]:
    """Reads adapter_config.json, which must have `peft_type`. Raises ExpungeError for another file."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExpungeError(f"{folder / CONFIG} is not the configuration of a PEFT adapter ({error!r}); copy it again") from error
    return config


def adapter_tensors(label: str, folder: Path) -> dict[str, Stored]:
    if not (folder / WEIGHTS).is_file():
        raise ExpungeError(f"{label} has {CONFIG} but no {WEIGHTS}; save the adapter with safetensors")
    return stored_tensors(folder / WEIGHTS)


def check_product(label: str, config: Mapping[str, Any]) -> None:
    """Raises ExpungeError if a LoRA is not a plain product of two factors added to the base that it names."""
    for field in UNUSUAL:
        if config.get(field):
            raise ExpungeError(f"{label} uses {field}, so that its factors alone are not what it does; merge it with peft first")
    start = str(config.get("init_lora_weights", "")).lower()
    if start not in PLAIN_STARTS:
        raise ExpungeError(
            f"{label} was initialized by {start}, which changed its base too; convert it with peft's save_pretrained first"
        )


def _low_rank(
    label: str, config: Mapping[str, Any], module: str, key: str, stored: Mapping[str, Stored], base: Mapping[str, Stored]
) -> LowRank:
    embedding = key.endswith("embedding_A")
    a = stored[key]
    b = stored[_partner(label, key, key.replace(".lora_A", ".lora_B").replace("_embedding_A", "_embedding_B"), stored)]
    target = base[_known(label, f"{module}.weight", base)]
    transposed = embedding or bool(config.get("fan_in_fan_out"))
    shape = (b.shape[0], a.shape[1])
    if len(a.shape) != 2 or len(b.shape) != 2 or (shape[::-1] if transposed else shape) != target.shape:
        raise ExpungeError(
            f"{label}: the adapter of {module} makes {shape}, but the base's weight is {target.shape}; wrong base model?"
        )
    return LowRank(b, a, transposed, embedding, scaling_of(label, config, module, a.shape[0]))


def scaling_of(label: str, config: Mapping[str, Any], module: str, rank: int) -> float:
    """Returns alpha / rank, or alpha / sqrt(rank) with rsLoRA; alpha may be the module's own.

    Raises ExpungeError if the configuration gives another rank than the factors have, or no alpha: it is another adapter's.
    """
    said = _of_module(config.get("rank_pattern") or {}, module, config.get("r", rank))
    if said != rank or not rank:
        raise ExpungeError(f"{label}: the factors of {module} have rank {rank}, and {CONFIG} says {said}; copy the adapter again")
    alpha = _of_module(config.get("alpha_pattern") or {}, module, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ExpungeError(f"{label}: {CONFIG} gives {module} the lora_alpha {alpha}, which is no number; copy the adapter again")
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _check_copy(label: str, name: str, copy: Stored, base: Mapping[str, Stored]) -> None:
    """Raises ExpungeError unless the embedding that PEFT saves beside an adapter on it equals the base's."""
    original = base[_known(label, name, base)]
    with Files() as files:
        comparable = copy.shape == original.shape and {copy.code, original.code} <= INFINITY.keys()
        if not comparable or not all(
            np.array_equal(_part(files, copy, *piece), _part(files, original, *piece)) for piece in pieces(copy.elements)
        ):
            raise ExpungeError(f"{label} holds a {name} that is not the base's; give the base that the adapter was trained on")


def _part(files: Files, tensor: Stored, start: int, stop: int) -> NDArray[Any]:
    return widened(read_bytes(files, tensor, start, stop), tensor.code)


def _of_module(pattern: Mapping[str, float], module: str, default: float | None) -> float | None:
    """Looks a key up as PEFT does: it is a regular expression for the end of a module's name."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _known(label: str, name: str, base: Mapping[str, Stored]) -> str:
    if name not in base:
        raise ExpungeError(f"{label} changes {name}, which the base does not have{nearest(name, base)}; give its own base model")
    return name


def _partner(label: str, key: str, partner: str, stored: Mapping[str, Stored]) -> str:
    if partner not in stored:
        raise ExpungeError(f"{label} has {key} without {partner}; copy the adapter again")
    return partner
