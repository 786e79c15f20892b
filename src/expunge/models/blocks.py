"""Where things are: embeddings, decoder blocks, MLP pre-activations and keys, by role and never by index or substring.

A feed-forward layer is   z = W_in x + b;  key = act(z);  out = W_down key        (GPT style), or gated
                          g = W_gate x;  u = W_up x;  key = act(g) * u;  out = W_down key   (Llama style).
The pre-activation is z, or g where there is a gate; the key is the input of the down projection.
"""

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import nn

from expunge.errors import ExpungeError
from expunge.models.hooks import Site, resolve
from expunge.models.load import causal_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Layout:
    """Module names of an architecture; those of the second group are inside a block."""

    embeddings: str
    blocks: str
    norm: str

    attention_out: str
    """The projection that ends attention; its input are the heads' outputs side by side."""
    pre_activation: str
    key: str
    activation: str
    up: str | None = None
    """The factor beside the gate; nothing for ungated MLPs."""
    fused: bool = False
    """Gate and up are the two halves of one matrix's output."""
    transposed: bool = False
    """Weights are [in, out] (GPT-2's Conv1D) and not [out, in]."""


_LLAMA = Layout(
    embeddings="model.embed_tokens",
    blocks="model.layers",
    norm="model.norm",
    attention_out="self_attn.o_proj",
    pre_activation="mlp.gate_proj",
    up="mlp.up_proj",
    key="mlp.down_proj",
    activation="mlp.act_fn",
)
_FALCON = Layout(
    embeddings="transformer.word_embeddings",
    blocks="transformer.h",
    norm="transformer.ln_f",
    attention_out="self_attention.dense",
    pre_activation="mlp.dense_h_to_4h",
    key="mlp.dense_4h_to_h",
    activation="mlp.act",
)
LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2", "olmo3", "smollm3", "granite"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _LLAMA),
    "gemma3": replace(
        _LLAMA,
        embeddings="model.language_model.embed_tokens",
        blocks="model.language_model.layers",
        norm="model.language_model.norm",
    ),
    "phi3": replace(_LLAMA, pre_activation="mlp.gate_up_proj", up="mlp.gate_up_proj", activation="mlp.activation_fn", fused=True),
    "phi": replace(
        _LLAMA,
        norm="model.final_layernorm",
        attention_out="self_attn.dense",
        pre_activation="mlp.fc1",
        up=None,
        key="mlp.fc2",
        activation="mlp.activation_fn",
    ),
    "gpt2": Layout(
        embeddings="transformer.wte",
        blocks="transformer.h",
        norm="transformer.ln_f",
        attention_out="attn.c_proj",
        pre_activation="mlp.c_fc",
        key="mlp.c_proj",
        activation="mlp.act",
        transposed=True,
    ),
    "gptj": Layout(
        embeddings="transformer.wte",
        blocks="transformer.h",
        norm="transformer.ln_f",
        attention_out="attn.out_proj",
        pre_activation="mlp.fc_in",
        key="mlp.fc_out",
        activation="mlp.act",
    ),
    "gpt_neox": Layout(
        embeddings="gpt_neox.embed_in",
        blocks="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
        attention_out="attention.dense",
        pre_activation="mlp.dense_h_to_4h",
        key="mlp.dense_4h_to_h",
        activation="mlp.act",
    ),
    "opt": Layout(
        embeddings="model.decoder.embed_tokens",
        blocks="model.decoder.layers",
        norm="model.decoder.final_layer_norm",
        attention_out="self_attn.out_proj",
        pre_activation="fc1",
        key="fc2",
        activation="activation_fn",
    ),
    "falcon": _FALCON,
    "bloom": replace(_FALCON, activation="mlp.gelu_impl"),
}
"""By `config.model_type`."""


@dataclass(frozen=True)
class Blocks:
    """The names of a model's parts, good on the transformers model inside any wrapper. Block 0 is the first, -1 the last."""

    root: "PreTrainedModel" = field(repr=False)
    layout: Layout
    count: int
    width: int
    """Features of the hidden state between blocks."""
    d_ff: int
    """Neurons of an MLP: features of its key."""

    @property
    def embeddings(self) -> str:
        return self.layout.embeddings

    @property
    def norm(self) -> str | None:
        """The norm after the last block; None where an architecture has none (OPT-350m)."""
        return self.layout.norm if self.layout.norm in dict(self.root.named_modules()) else None

    @property
    def transposed(self) -> bool:
        """Whether the weights of linear maps are [in, out] instead of torch's [out, in]."""
        return self.layout.transposed

    def module(self, name: str) -> nn.Module:
        return resolve(self.root, name)

    def block(self, i: int) -> str:
        if not -self.count <= i < self.count:
            raise ExpungeError(
                f"block {i} was asked for, but this {self.root.config.model_type} model has blocks 0 to {self.count - 1}"
            )
        return f"{self.layout.blocks}.{i % self.count}"

    def hidden(self, i: int) -> Site:
        """The residual stream after block i, [B, T, width]."""
        return Site(self.block(i))

    def pre_activation(self, i: int) -> Site:
        """What goes into the non-linearity, [B, T, d_ff]: the gate's output where there is a gate."""
        return Site(f"{self.block(i)}.{self.layout.pre_activation}", "output", (0, self.d_ff) if self.layout.fused else None)

    def up(self, i: int) -> Site | None:
        """The factor beside the activated gate, [B, T, d_ff]; None for ungated MLPs."""
        if self.layout.up is None:
            return None
        return Site(f"{self.block(i)}.{self.layout.up}", "output", (self.d_ff, 2 * self.d_ff) if self.layout.fused else None)

    def activation(self, i: int) -> str:
        """The module of the non-linearity."""
        return f"{self.block(i)}.{self.layout.activation}"

    def key(self, i: int) -> Site:
        """The input of the down projection, [B, T, d_ff]."""
        return Site(f"{self.block(i)}.{self.layout.key}", "input")

    def down_proj(self, i: int) -> str:
        """The parameter that turns keys into the MLP's output: [width, d_ff], or [d_ff, width] if `transposed`."""
        return f"{self.block(i)}.{self.layout.key}.weight"

    def mlp_output(self, i: int) -> Site:
        """What the down projection gives, [B, T, width]: before dropout, norm and residual, which some MLP modules include."""
        return Site(f"{self.block(i)}.{self.layout.key}")

    def attention_key(self, i: int) -> Site:
        """The input of attention's output projection: the heads' outputs side by side."""
        return Site(f"{self.block(i)}.{self.layout.attention_out}", "input")

    def attention_out(self, i: int) -> str:
        """The parameter of attention's output projection."""
        return f"{self.block(i)}.{self.layout.attention_out}.weight"


def blocks_of(model: nn.Module) -> Blocks:
    """Looks a model up in `LAYOUTS` and checks that every named module is there."""
    root = causal_model(model)
    model_type = root.config.model_type
    if model_type not in LAYOUTS:
        raise ExpungeError(
            f"expunge does not know where the parts of a '{model_type}' model are (it knows {', '.join(sorted(LAYOUTS))}); "
            f"set expunge.models.blocks.LAYOUTS['{model_type}'] to a Layout of its module names: {', '.join(_patterns(root))}"
        )
    layout, config = LAYOUTS[model_type], root.config.get_text_config()
    count = len(list(resolve(root, layout.blocks).children()))
    down = resolve(root, f"{layout.blocks}.0.{layout.key}")
    d_ff = int(down.weight.shape[0] if layout.transposed else down.in_features)  # type: ignore[index, arg-type]
    places = Blocks(root, layout, count, config.hidden_size, d_ff)
    inside = (layout.attention_out, layout.pre_activation, layout.activation, layout.key, *([layout.up] if layout.up else []))
    for name in (layout.embeddings, *(f"{places.block(i)}.{part}" for i in range(places.count) for part in inside)):
        resolve(root, name)
    return places


def _patterns(root: nn.Module) -> list[str]:
    """Names of the modules that own weights, once per kind of block: `model.layers.*.mlp.gate_proj`."""
    named = (name for name, module in root.named_modules() if next(module.parameters(recurse=False), None) is not None)
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in named))
