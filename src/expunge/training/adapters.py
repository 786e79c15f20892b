"""Makes the adapters that a run trains: LoRA, a product of two factors, or (IA)^3, a vector that multiplies.

(IA)^3 (Liu et al. 2022, arXiv 2205.05638) multiplies the outputs of keys and values, and the inputs of the last linear layer of
an MLP, by vectors that start at 1. Which layers these are is PEFT's table by model type.
"""

import re

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import constants
from torch import nn
from transformers import PreTrainedModel

from expunge.errors import ExpungeError
from expunge.models.load import causal_model
from expunge.training.settings import Training

TARGETS: dict[str, list[str]] = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
"""Model type -> the layers of (IA)^3."""
INNER: dict[str, list[str]] = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
"""Model type -> those of them whose inputs are multiplied, not their outputs."""

OWN = re.compile(r"(^|\.)(lora_|ia3_l)")
"""In the names of an adapter's own weights."""


def attach(model: PreTrainedModel, modules: tuple[str, ...], parameters: tuple[str, ...], training: Training) -> PeftModel:
    """Wraps the model with a new adapter on these layers and parameters; the same seed gives the same start.

    Raises ExpungeError if a layer has no adapter of its own afterwards; PEFT silently skips what it cannot match.
    """
    torch.manual_seed(training.seed)
    transposed = any(type(model.get_submodule(name)).__name__ == "Conv1D" for name in modules)
    config: PeftConfig
    if training.adapter == "ia3":
        ends = tuple(INNER[_model_type(model)])
        inner = [name for name in modules if name.endswith(ends)]
        config = IA3Config(
            target_modules=list(modules), feedforward_modules=inner, fan_in_fan_out=transposed, task_type="CAUSAL_LM"
        )
    else:
        config = LoraConfig(
            r=training.lora_rank,
            lora_alpha=training.lora_alpha,
            lora_dropout=training.lora_dropout,
            target_modules=list(modules),
            target_parameters=list(parameters) or None,
            fan_in_fan_out=transposed,
            task_type="CAUSAL_LM",
        )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ExpungeError(
            f"PEFT takes no adapter on {', '.join(sorted({name.rpartition('.')[2] for name in modules}))} ({error}); narrow "
            "--parameters, or train whole weights without --lora"
        ) from error
    last = "ia3_l.default" if training.adapter == "ia3" else "lora_B.default.weight"
    found = sum(name.endswith(last) for name, p in adapted.named_parameters() if p.requires_grad)
    asked = len(modules) + len(parameters)
    if found != asked:
        raise ExpungeError(f"adapters were asked for on {asked} matrices and PEFT made {found}; narrow --parameters")
    return adapted  # type: ignore[no-any-return]


def scaled_layers(model: PreTrainedModel, modules: tuple[str, ...], *, chosen: bool) -> tuple[str, ...]:
    """Returns the layers that get a vector of (IA)^3: the given ones if they were `chosen` by a pattern, else those of PEFT's
    table among them.

    Raises ExpungeError for a model type that the table lacks, since inputs and outputs cannot be told apart by a name.
    """
    kind = _model_type(model)
    if kind not in TARGETS or kind not in INNER:
        raise ExpungeError(f"PEFT has no layers of (IA)^3 for the model type {kind}; train LoRA: leave --adapter out")
    return modules if chosen else tuple(name for name in modules if name.endswith(tuple(TARGETS[kind])))


def plain_name(name: str) -> str:
    """Returns the name that a weight has without adapters around it."""
    return name.replace(".base_layer", "")


def _model_type(model: nn.Module) -> str:
    return str(causal_model(model).config.model_type)
