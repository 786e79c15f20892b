"""Rotation in line: states are rotated as transformers rotates them, layers of known families only, and only in the context."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from expunge.models.attention_blocks import Packed
from expunge.models.logprobs import logits_at
from expunge.models.packed_attention import attention, packed
from expunge.models.rotation import NARROW, Turn, rotated_in_line

SIZE = {
    "vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "num_hidden_layers": 2, "initializer_range": 0.3,
}  # fmt: skip
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZE)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZE, sliding_window=None)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZE)),
}


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    kind, config = FAMILIES[name]
    model: PreTrainedModel = kind(config).eval()
    return model


def tables(tokens: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    angle_1TH = torch.randn(1, tokens, width // 2, generator=torch.Generator().manual_seed(1))
    angle_1TW = torch.cat([angle_1TH, angle_1TH], dim=-1)
    return angle_1TW.cos(), angle_1TW.sin()


@pytest.mark.parametrize("width", [2, 8, 32])
def test_states_are_rotated_as_transformers_rotates_them(width: int) -> None:
    states_1TE, (cos, sin) = torch.randn(1, 7, 3 * width, generator=torch.Generator().manual_seed(0)), tables(7, width)
    by_head = states_1TE.unflatten(-1, (3, width)).transpose(1, 2)
    expected, _ = apply_rotary_pos_emb(by_head, by_head, cos, sin)
    found = Turn.of(cos, sin, 3)(states_1TE).unflatten(-1, (3, width)).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_wrong_with_one_token_stays_with_it(broken: float) -> None:
    states_1TE, (cos, sin) = torch.randn(1, 5, 16), tables(5, 8)
    expected = Turn.of(cos, sin, 2)(states_1TE)
    states_1TE[0, 2] = broken
    found = Turn.of(cos, sin, 2)(states_1TE)
    assert not found[0, 2].isfinite().any()
    others = [0, 1, 3, 4]
    torch.testing.assert_close(found[0, others], expected[0, others])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pack_has_the_logits_of_its_rows(name: str) -> None:
    model, rows = made(name), [(3, 7, 1, 9, 4), (8, 2, 5)]
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([row])).logits[0] for row in rows])
        with packed(model, Packed([5, 3], [(), ()])):
            assert all("forward" in vars(block.self_attn) for block in model.model.layers)
            ids_1T, position_1T = torch.tensor([rows[0] + rows[1]]), torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
            found = logits_at(model, ids_1T, None, torch.arange(8), position_1T)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not any("forward" in vars(module) for module in model.modules())


def test_other_layers_keep_their_own_computation() -> None:
    wide = LlamaForCausalLM(LlamaConfig(**SIZE | {"hidden_size": 8 * NARROW, "head_dim": 2 * NARROW}))
    normed = Qwen3ForCausalLM(Qwen3Config(**SIZE, head_dim=8))  # its heads have a norm before the rotation
    for model in (wide, normed):
        with rotated_in_line(model, attention) as count:
            assert count == 0
    read = made("llama")
    read.model.layers[0].self_attn.register_forward_hook(lambda *_: None)
    with rotated_in_line(read, attention) as count:
        assert count == 1


def test_layers_with_a_window_are_not_computed_in_packs() -> None:
    model = MistralForCausalLM(MistralConfig(**SIZE, sliding_window=2)).eval()
    with packed(model, Packed([3], [()])), pytest.raises(NotImplementedError, match="MistralAttention"):
        logits_at(model, torch.tensor([[3, 7, 1]]), None, torch.arange(3), torch.arange(3)[None])


def test_layers_that_only_have_the_name_keep_their_own_computation() -> None:
    model = made("llama")
    for block in model.model.layers:
        block.self_attn.__class__ = type("LlamaAttention", (type(block.self_attn),), {"__module__": "somewhere"})
    with rotated_in_line(model, attention) as count:
        assert count == 0


def test_layers_are_given_back_after_an_error() -> None:
    model = made("llama")
    with pytest.raises(ValueError, match="on the way"), rotated_in_line(model, attention):
        raise ValueError("on the way")
    assert not any("forward" in vars(module) for module in model.modules())
