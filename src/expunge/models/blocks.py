"""Finds the parts of a model by role: embeddings, decoder blocks, MLP pre-activations and keys.

A feed-forward layer is   z = W_in x + b;  key = act(z);  out = W_down key        (GPT style), or gated
                          g = W_gate x;  u = W_up x;  key = act(g) * u;  out = W_down key   (Llama style).
The pre-activation is z, or g where there is a gate; the key is the input of the down projection.
"""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from expunge.errors import ExpungeError
from expunge.models.architecture import ARCHITECTURES, Architecture
from expunge.models.hooks import Site, resolve
from expunge.models.load import causal_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Blocks:
    """Names of a model's parts, valid in the transformers model inside any wrapper. Block 0 is the first, -1 the last."""

    root: "PreTrainedModel" = field(repr=False)
    architecture: Architecture
    count: int
    width: int
    """Size of the hidden state between blocks."""
    d_ff: int
    """Number of neurons of an MLP: the size of its key."""
    modules: frozenset[str] = field(repr=False)
    """Names of all modules."""

    @property
    def embeddings(self) -> str:
        return self.architecture.embeddings

    @property
    def norm(self) -> str | None:
        """Returns the norm after the last block; None for architectures without one (OPT-350m)."""
        return self.architecture.norm if self.architecture.norm in self.modules else None

    @property
    def transposed(self) -> bool:
        """Returns whether the weights of linear maps are [in, out] instead of torch's [out, in]."""
        return self.architecture.transposed

    def module(self, name: str) -> nn.Module:
        return resolve(self.root, name)

    def block(self, i: int) -> str:
        if not -self.count <= i < self.count:
            raise ExpungeError(
                f"block {i} was asked for, but this {self.root.config.model_type} model has blocks 0 to {self.count - 1}"
            )
        return f"{self.architecture.blocks}.{i % self.count}"

    def hidden(self, i: int) -> Site:
        """Returns the residual stream after block i, [B, T, width]."""
        return Site(self.block(i))

    def has_experts(self, i: int) -> bool:
        """Returns whether block i has a mixture of experts instead of one MLP."""
        experts = self.architecture.experts
        return experts is not None and f"{self.block(i)}.{experts}" in self.modules

    def mlp_out(self, i: int) -> tuple[str, ...]:
        """Returns the last parameters of the MLP of block i: the down projection, or those of all experts as one parameter
        [experts, width, d_ff], with the shared expert's if there is one."""
        if not self.has_experts(i):
            return (f"{self.block(i)}.{self.architecture.key}.weight",)
        shared = self.architecture.shared_expert_out
        fused = f"{self.block(i)}.{self.architecture.experts}.down_proj"
        return (fused, f"{self.block(i)}.{shared}.weight") if shared else (fused,)

    def pre_activation(self, i: int) -> Site:
        """Returns the input of the non-linearity, [B, T, d_ff]: the gate's output for gated MLPs. Raises ExpungeError if
        block i is a mixture of experts."""
        self._one_mlp(i)
        part = (0, self.d_ff) if self.architecture.fused else None
        return Site(f"{self.block(i)}.{self.architecture.pre_activation}", "output", part)

    def up(self, i: int) -> Site | None:
        """Returns the factor of the activated gate, [B, T, d_ff]; None for ungated MLPs."""
        if self.architecture.up is None:
            return None
        self._one_mlp(i)
        part = (self.d_ff, 2 * self.d_ff) if self.architecture.fused else None
        return Site(f"{self.block(i)}.{self.architecture.up}", "output", part)

    def activation(self, i: int) -> str:
        """Returns the module of the non-linearity."""
        self._one_mlp(i)
        return f"{self.block(i)}.{self.architecture.activation}"

    def key(self, i: int) -> Site:
        """Returns the input of the down projection, [B, T, d_ff]. Raises ExpungeError if block i is a mixture of experts."""
        self._one_mlp(i)
        return Site(f"{self.block(i)}.{self.architecture.key}", "input")

    def down_proj(self, i: int) -> str:
        """Returns the parameter that maps keys to the MLP's output: [width, d_ff], or [d_ff, width] if `transposed`."""
        self._one_mlp(i)
        return f"{self.block(i)}.{self.architecture.key}.weight"

    def attention_out(self, i: int) -> str:
        """Returns the parameter of attention's output projection."""
        return f"{self.block(i)}.{self.architecture.attention_out}.weight"

    def _one_mlp(self, i: int) -> None:
        if self.has_experts(i):
            raise ExpungeError(
                f"block {i % self.count} of this {self.root.config.model_type} model is a mixture of experts, whose neurons are "
                "computed inside one fused operation and can be neither read nor changed; take a method that trains weights"
            )


def blocks_of(model: nn.Module) -> Blocks:
    """Finds the parts of a model. Raises ExpungeError for an unknown model type, or if a named module is missing."""
    root = causal_model(model)
    model_type = root.config.model_type
    if model_type not in ARCHITECTURES:
        raise ExpungeError(
            f"expunge does not know where the parts of a '{model_type}' model are (it knows {', '.join(sorted(ARCHITECTURES))}); "
            f"set expunge.models.architecture.ARCHITECTURES['{model_type}'] to an Architecture with its "
            f"module names: {', '.join(_patterns(root))}"
        )
    architecture, config = ARCHITECTURES[model_type], root.config.get_text_config()
    count = len(list(resolve(root, architecture.blocks).children()))
    modules = frozenset(name for name, _ in root.named_modules())
    places = Blocks(root, architecture, count, config.hidden_size, _neurons(root, architecture, count, modules), modules)
    dense = (
        architecture.pre_activation,
        architecture.activation,
        architecture.key,
        *([architecture.up] if architecture.up else []),
    )
    resolve(root, architecture.embeddings)
    for i in range(count):
        for part in (architecture.attention_out, *(() if places.has_experts(i) else dense)):
            resolve(root, f"{places.block(i)}.{part}")
    return places


def _neurons(root: nn.Module, architecture: Architecture, count: int, modules: frozenset[str]) -> int:
    """Returns the number of neurons of the first dense MLP, or of one expert if there is none."""
    for i in range(count):
        block = f"{architecture.blocks}.{i}"
        if architecture.experts is None or f"{block}.{architecture.experts}" not in modules:
            down = resolve(root, f"{block}.{architecture.key}")
            return int(down.weight.shape[0] if architecture.transposed else down.in_features)  # type: ignore[index, arg-type]
    experts: Any = resolve(root, f"{architecture.blocks}.0.{architecture.experts}")
    while hasattr(experts, "base_layer"):  # adapters on the experts stand around them
        experts = experts.base_layer
    return int(experts.down_proj.shape[-1])


def _patterns(root: nn.Module) -> list[str]:
    """Returns names of the modules that own weights, once per kind of block: `model.layers.*.mlp.gate_proj`."""
    named = (name for name, module in root.named_modules() if next(module.parameters(recurse=False), None) is not None)
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in named))
