"""Roles against the module tree and against what the modules compute."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CodeGenConfig, CodeGenForCausalLM, PreTrainedModel

from expunge.data.encode import Tokens
from expunge.errors import ExpungeError
from expunge.models.architecture import ARCHITECTURES
from expunge.models.blocks import Blocks, blocks_of
from expunge.models.hooks import Site, capture
from expunge.models.logprobs import labelled_logits


def linear(places: Blocks, name: str, input_BTD: Tensor) -> Tensor:
    """By hand from the parameters: y = W x + b."""
    parameters = dict(places.root.named_parameters())
    weight = parameters[f"{name}.weight"]
    return functional.linear(input_BTD, weight.T if places.transposed else weight, parameters.get(f"{name}.bias"))


def test_every_type_in_the_table_has_a_pico_model(model_of: Callable[..., PreTrainedModel]) -> None:
    assert {model_of(model_type).config.model_type for model_type in ARCHITECTURES} == set(ARCHITECTURES)


def test_every_pico_model_is_in_the_table(any_model: PreTrainedModel) -> None:
    assert any_model.config.model_type in ARCHITECTURES


def test_keys_times_the_down_projection_are_the_mlp_output_and_the_activated_gate_is_the_key(
    any_model: PreTrainedModel, batch: Callable[..., Tokens]
) -> None:
    places = blocks_of(any_model)
    for i in range(places.count):
        sites = {"pre": places.pre_activation(i), "key": places.key(i), "out": Site(places.key(i).name)}
        up = places.up(i)
        with capture(any_model, sites | ({"up": up} if up else {})) as at:
            labelled_logits(any_model, batch())
        assert at["pre"].shape == at["key"].shape == (3, 10, places.d_ff)
        assert at["out"].shape == (3, 10, places.width)
        activated = places.module(places.activation(i))(at["pre"])
        torch.testing.assert_close(activated * at["up"] if up else activated, at["key"])
        assert places.down_proj(i) == f"{places.key(i).name}.weight"
        torch.testing.assert_close(linear(places, places.key(i).name, at["key"]), at["out"])


def test_the_residual_stream_enters_the_next_block_and_the_last_one_the_norm_and_the_head(
    any_model: PreTrainedModel, batch: Callable[..., Tokens]
) -> None:
    places = blocks_of(any_model)
    assert places.norm is not None
    sites = {
        "embedded": Site(places.embeddings),
        "0": places.hidden(0),
        "last": places.hidden(-1),
        "into 1": Site(places.block(1), "input"),
        "into norm": Site(places.norm, "input"),
        "normed": Site(places.norm),
    }
    with capture(any_model, sites) as at:
        logits_BTV = any_model(
            input_ids=batch().input_ids_BT, attention_mask=batch().attention_mask_BT, output_hidden_states=True
        )
    torch.testing.assert_close(at["0"], at["into 1"])
    torch.testing.assert_close(at["last"], at["into norm"])
    torch.testing.assert_close(at["normed"], logits_BTV.hidden_states[-1])
    torch.testing.assert_close(at["0"], logits_BTV.hidden_states[1])
    assert places.width == at["0"].shape[-1]
    assert places.module(places.embeddings) is any_model.get_input_embeddings()


def test_attention_ends_with_its_output_projection(any_model: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    places = blocks_of(any_model)
    site = Site(places.attention_out(1).removesuffix(".weight"), "input")
    with capture(any_model, {"in": site, "out": Site(site.name)}) as at:
        labelled_logits(any_model, batch())
    torch.testing.assert_close(linear(places, site.name, at["in"]), at["out"])
    assert places.attention_out(1) in dict(any_model.named_parameters())


def test_every_block_is_counted_and_others_are_refused(any_model: PreTrainedModel) -> None:
    places = blocks_of(any_model)
    assert places.count == any_model.config.get_text_config().num_hidden_layers == 2
    assert places.block(-1) == places.block(1)
    with pytest.raises(ExpungeError, match=r"block 31 was asked for, but this \w+ model has blocks 0 to 1"):
        places.key(31)


def test_opt_350m_has_no_last_norm(model_of: Callable[..., PreTrainedModel]) -> None:
    assert blocks_of(model_of("opt", do_layer_norm_before=False)).norm is None


def test_roles_hold_inside_an_adapter(model_of: Callable[..., PreTrainedModel], batch: Callable[..., Tokens]) -> None:
    from peft import LoraConfig, get_peft_model

    for model_type in ("llama", "gpt2"):
        model = model_of(model_type)
        before = blocks_of(model)
        adapted = get_peft_model(model, LoraConfig(target_modules=[before.key(0).name.rpartition(".")[2]], r=2))
        places = blocks_of(adapted)
        assert (places.d_ff, places.key(0)) == (before.d_ff, before.key(0))
        with capture(adapted, {0: places.key(0)}) as at:
            labelled_logits(adapted, batch())
        assert at[0].shape == (3, 10, places.d_ff)


def test_the_experts_of_a_mixture_are_parameters_and_their_neurons_are_refused_by_name(any_mixture: PreTrainedModel) -> None:
    places = blocks_of(any_mixture)
    for i in range(places.count):
        assert places.has_experts(i)
        fused, *shared = (any_mixture.get_parameter(name) for name in places.mlp_out(i))
        assert fused.shape == (4, places.width, places.d_ff)
        assert [p.shape for p in shared] == [(32, 24)] * (places.root.config.model_type == "qwen2_moe")
    for read in (places.key, places.pre_activation, places.up, places.down_proj):
        with pytest.raises(ExpungeError, match=r"block 1 of this \w+ model is a mixture of experts"):
            read(-1)


def test_a_dense_block_among_mixtures_is_read_like_any_other(model_of: Callable[..., PreTrainedModel]) -> None:
    places = blocks_of(model_of("qwen3_moe", mlp_only_layers=[0]))
    assert (places.has_experts(0), places.has_experts(1)) == (False, True)
    assert places.mlp_out(0) == (places.down_proj(0),)
    assert places.d_ff == 48


def test_an_unknown_type_is_told_its_module_names_and_where_to_put_them() -> None:
    model = CodeGenForCausalLM(
        CodeGenConfig(vocab_size=60, n_embd=16, n_layer=2, n_head=2, rotary_dim=4, eos_token_id=2, bos_token_id=1)
    )
    with pytest.raises(ExpungeError) as error:
        blocks_of(model)
    assert "'codegen'" in str(error.value)
    assert "ARCHITECTURES['codegen']" in str(error.value)
    assert str(error.value).count("transformer.h.*.mlp.fc_in") == 1
    assert "transformer.h.0" not in str(error.value)


def test_a_layout_that_does_not_fit_is_refused(pico_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "llama", ARCHITECTURES["phi3"])
    with pytest.raises(
        ExpungeError, match=r"no module 'model.layers.0.mlp.gate_up_proj' \(did you mean 'model.layers.0.mlp.\w+'"
    ):
        blocks_of(pico_llama)
