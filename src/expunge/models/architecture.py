"""Describes the supported architectures: module names, layouts and special cases by model type."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Architecture:
    """The module names of a model type (those of the second group are inside a block), and how it differs from others."""

    embeddings: str
    blocks: str
    norm: str

    attention_out: str
    """The last projection of attention; its input is the concatenated output of the heads."""
    pre_activation: str
    key: str
    activation: str
    up: str | None = None
    """The linear map whose output multiplies the activated gate; None for ungated MLPs."""
    fused: bool = False
    """Gate and up are the two halves of one matrix's output."""
    transposed: bool = False
    """Weights are [in, out] (GPT-2's Conv1D) and not [out, in]."""
    experts: str | None = None
    """Module of a mixture of experts, whose parameters `gate_up_proj` and `down_proj` hold the matrices of all experts
    [experts, out, in]. Blocks without that module have the dense MLP above."""
    shared_expert_out: str | None = None
    """The last matrix of the shared expert, the MLP that processes every token besides the routed experts."""

    flattens: bool = False
    """Blocks flatten rows and positions internally, [B, T, D] -> [B T, D]."""
    softcap: str | None = None
    """Field of the configuration with the cap c of the logits: c tanh(logits / c)."""
    logit_divisor: str | None = None
    """Field of the configuration that divides the logits. By model type: the same field multiplies in other architectures."""


_LLAMA = Architecture(
    embeddings="model.embed_tokens",
    blocks="model.layers",
    norm="model.norm",
    attention_out="self_attn.o_proj",
    pre_activation="mlp.gate_proj",
    up="mlp.up_proj",
    key="mlp.down_proj",
    activation="mlp.act_fn",
)
_FALCON = Architecture(
    embeddings="transformer.word_embeddings",
    blocks="transformer.h",
    norm="transformer.ln_f",
    attention_out="self_attention.dense",
    pre_activation="mlp.dense_h_to_4h",
    key="mlp.dense_4h_to_h",
    activation="mlp.act",
)
ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2", "olmo3", "smollm3"), _LLAMA),
    "granite": replace(_LLAMA, logit_divisor="logits_scaling"),
    "gemma": _LLAMA,
    **dict.fromkeys(("gemma2", "gemma3_text"), replace(_LLAMA, softcap="final_logit_softcapping")),
    **dict.fromkeys(("mixtral", "qwen3_moe", "olmoe"), replace(_LLAMA, experts="mlp.experts")),
    "qwen2_moe": replace(_LLAMA, experts="mlp.experts", shared_expert_out="mlp.shared_expert.down_proj"),
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
    "gpt2": Architecture(
        embeddings="transformer.wte",
        blocks="transformer.h",
        norm="transformer.ln_f",
        attention_out="attn.c_proj",
        pre_activation="mlp.c_fc",
        key="mlp.c_proj",
        activation="mlp.act",
        transposed=True,
    ),
    "gptj": Architecture(
        embeddings="transformer.wte",
        blocks="transformer.h",
        norm="transformer.ln_f",
        attention_out="attn.out_proj",
        pre_activation="mlp.fc_in",
        key="mlp.fc_out",
        activation="mlp.act",
    ),
    "gpt_neox": Architecture(
        embeddings="gpt_neox.embed_in",
        blocks="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
        attention_out="attention.dense",
        pre_activation="mlp.dense_h_to_4h",
        key="mlp.dense_4h_to_h",
        activation="mlp.act",
    ),
    "opt": Architecture(
        embeddings="model.decoder.embed_tokens",
        blocks="model.decoder.layers",
        norm="model.decoder.final_layer_norm",
        attention_out="self_attn.out_proj",
        pre_activation="fc1",
        key="fc2",
        activation="activation_fn",
        flattens=True,
    ),
    "falcon": _FALCON,
    "bloom": replace(_FALCON, activation="mlp.gelu_impl"),
}
"""Architectures by `config.model_type`."""
