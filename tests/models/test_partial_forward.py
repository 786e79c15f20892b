"""A stretch of blocks computes what the whole model computes there, for every architecture, and leaves no trace."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from expunge.data.encode import Tokens
from expunge.models.blocks import blocks_of
from expunge.models.hooks import capture
from expunge.models.load import causal_model
from expunge.models.logprobs import labelled_hidden
from expunge.models.partial_forward import exchanged, partial_forward

LAYERS = 4
COUNT = {"gpt2": "n_layer", "bloom": "n_layer"}


def deep(model_of: Callable[..., PreTrainedModel], model_type: str) -> PreTrainedModel:
    if model_type == "gemma3":
        return model_of(model_type)
    return model_of(model_type, **{COUNT.get(model_type, "num_hidden_layers"): LAYERS, **types(model_type)})


def types(model_type: str) -> dict[str, list[str]]:
    """Windows and full attention in turn, so that neighboring blocks get different masks and positions."""
    alternating = model_type in ("gemma2", "gemma3_text", "olmo3")
    return {"layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)} if alternating else {}


@pytest.fixture
def model(any_model: PreTrainedModel, model_of: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return deep(model_of, any_model.config.model_type)


def whole(model: PreTrainedModel, tokens: Tokens, layer: int) -> torch.Tensor:
    places = blocks_of(model)
    with capture(model, {"h": places.hidden(layer)}) as seen:
        labelled_hidden(model, tokens)
    return seen["h"]


def test_a_section_gives_the_whole_model_s_hidden_states(model: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    tokens = batch()
    last = blocks_of(model).count - 2
    with torch.no_grad():
        torch.testing.assert_close(partial_forward(model, tokens, 0, last).hidden_BTD, whole(model, tokens, last), rtol=0, atol=0)
        torch.testing.assert_close(
            partial_forward(model, tokens, last, last).hidden_BTD, whole(model, tokens, last), rtol=0, atol=0
        )


def test_taken_up_again_it_gives_the_same(model: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    tokens, last = batch(), blocks_of(model).count - 1
    with torch.no_grad():
        before = partial_forward(model, tokens, last, last)
        for _ in range(2):
            again = partial_forward(model, tokens, last, last, before.entering)
            torch.testing.assert_close(again.hidden_BTD, before.hidden_BTD, rtol=0, atol=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_hidden_state(any_model: PreTrainedModel, batch: Callable[..., Tokens], side: str) -> None:
    with torch.no_grad():
        plain, padded = batch(side), batch(side, 24)
        expected = partial_forward(any_model, plain, 0, 0).hidden_BTD[plain.attention_mask_BT.bool()]
        found = partial_forward(any_model, padded, 0, 0).hidden_BTD[padded.attention_mask_BT.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_blocks_outside_are_not_computed(model_of: Callable[..., PreTrainedModel], batch: Callable[..., Tokens]) -> None:
    model = deep(model_of, "llama")
    seen: list[int] = []
    for i, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda *_, i=i: seen.append(i))
    with torch.no_grad():
        before = partial_forward(model, batch(), 1, 2)
        assert seen == [0, 1, 2]
        partial_forward(model, batch(), 1, 2, before.entering)
    assert seen == [0, 1, 2, 1, 2]


def test_the_gradient_is_the_full_pass_s(model_of: Callable[..., PreTrainedModel], batch: Callable[..., Tokens]) -> None:
    model, tokens = deep(model_of, "llama"), batch()
    weight = model.model.layers[1].mlp.down_proj.weight
    partial_forward(model, tokens, 1, 2).hidden_BTD.square().sum().backward()
    found, weight.grad = weight.grad, None
    whole(model, tokens, 2).square().sum().backward()
    torch.testing.assert_close(found, weight.grad, rtol=0, atol=0)


def test_nothing_is_left_behind_also_after_an_exception(
    model_of: Callable[..., PreTrainedModel], batch: Callable[..., Tokens]
) -> None:
    model = deep(model_of, "llama")
    with torch.no_grad():
        before = model(batch().input_ids_BT).logits
        entering = partial_forward(model, batch(), 1, 2).entering
        broken = batch()
        broken.input_ids_BT[0, 0] = 10**6
        for given in (None, entering):
            with pytest.raises(IndexError):
                partial_forward(model, broken, 1, 2, given)
        assert not any("forward" in vars(block) or block._forward_hooks for block in model.model.layers)
        assert torch.equal(model(batch().input_ids_BT).logits, before)


def test_exchanged_weights_are_in_the_model_and_its_own_are_kept(
    pico_llama: PreTrainedModel, batch: Callable[..., Tokens]
) -> None:
    other = copy.deepcopy(pico_llama)
    name = "model.layers.1.mlp.down_proj.weight"
    with torch.no_grad():
        other.get_parameter(name).add_(1.0)
        weights = {name: other.get_parameter(name).clone()}
        own = pico_llama.get_parameter(name).clone()
        expected = partial_forward(other, batch(), 1, 1).hidden_BTD
        with exchanged(pico_llama, weights):
            assert torch.equal(partial_forward(pico_llama, batch(), 1, 1).hidden_BTD, expected)
            assert torch.equal(weights[name], own)
    assert torch.equal(causal_model(pico_llama).get_parameter(name), own)
    assert torch.equal(weights[name], other.get_parameter(name))


def test_exchanged_weights_go_back_after_an_exception(pico_llama: PreTrainedModel) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    own = pico_llama.get_parameter(name).detach().clone()
    with pytest.raises(RuntimeError, match="stop"), exchanged(pico_llama, {name: torch.zeros_like(own)}):
        raise RuntimeError("stop")
    assert torch.equal(pico_llama.get_parameter(name), own)
