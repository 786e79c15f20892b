"""Activations are read and changed where said, and nothing stays behind."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from expunge.data.encode import Tokens
from expunge.errors import ExpungeError
from expunge.models.blocks import blocks_of
from expunge.models.hooks import Site, capture, edit
from expunge.models.logprobs import labelled_logits


def hooks_on(model: PreTrainedModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_hooks_with_kwargs) for m in model.modules())


def test_capturing_changes_nothing_and_leaves_nothing(any_model: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    expected_NV = labelled_logits(any_model, batch()).logits_NV
    places = blocks_of(any_model)
    sites = {(role.__name__, i): role(i) for role in (places.hidden, places.key, places.pre_activation) for i in (0, 1)}
    with capture(any_model, sites) as at:
        torch.testing.assert_close(labelled_logits(any_model, batch()).logits_NV, expected_NV, atol=0, rtol=0)
    assert at.keys() == sites.keys()
    assert all(tensor.shape[:2] == (3, 10) for tensor in at.values())
    assert hooks_on(any_model) == 0


def test_captured_tensors_do_not_depend_on_padding(any_model: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    places = blocks_of(any_model)
    seen = []
    for side, extra in (("right", 0), ("left", 24)):
        tokens = batch(side, extra)
        with torch.no_grad(), capture(any_model, {i: places.key(i) for i in (0, 1)}) as at:
            labelled_logits(any_model, tokens)
        seen.append([at[i][tokens.attention_mask_BT.bool()] for i in (0, 1)])
    torch.testing.assert_close(seen[1], seen[0], atol=1e-4, rtol=1e-4)


def test_a_bare_kind_means_the_module_that_the_key_names(pico_llama: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    with capture(pico_llama, {"model.layers.1": "input", "model.layers.0": "output"}) as at:
        labelled_logits(pico_llama, batch())
    assert torch.equal(at["model.layers.1"], at["model.layers.0"])


def test_gradients_flow_through_captured_tensors(pico_llama: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    with capture(pico_llama, {0: Site("model.layers.0")}) as at:
        logits_NV = labelled_logits(pico_llama, batch()).logits_NV
    (gradient,) = torch.autograd.grad(logits_NV.square().sum(), at[0], retain_graph=True)
    assert gradient.abs().sum() > 0
    at[0].square().sum().backward()
    assert pico_llama.model.layers[0].mlp.down_proj.weight.grad.abs().sum() > 0
    assert pico_llama.model.layers[1].mlp.down_proj.weight.grad is None


def test_falcon_does_not_change_a_captured_mlp_output_in_place(
    model_of: Callable[..., PreTrainedModel], batch: Callable[..., Tokens]
) -> None:
    falcon = model_of("falcon")
    with torch.no_grad(), capture(falcon, {"in": Site("transformer.h.0.mlp", "input"), "out": Site("transformer.h.0.mlp")}) as at:
        labelled_logits(falcon, batch())
    torch.testing.assert_close(at["out"], falcon.transformer.h[0].mlp(at["in"]))


def test_an_edit_reaches_the_logits_and_ends_with_its_context(any_model: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    places = blocks_of(any_model)
    with torch.no_grad():
        before_NV = labelled_logits(any_model, batch()).logits_NV
        attention = Site(places.attention_out(0).removesuffix(".weight"), "input")
        for site in (places.hidden(0), places.key(1), places.pre_activation(0), attention):
            with edit(any_model, {site: torch.zeros_like}), capture(any_model, {0: site}) as at:
                during_NV = labelled_logits(any_model, batch()).logits_NV
            assert at[0].abs().max() == 0
            assert not torch.allclose(during_NV, before_NV, atol=1e-3)
        torch.testing.assert_close(labelled_logits(any_model, batch()).logits_NV, before_NV, atol=0, rtol=0)
    assert hooks_on(any_model) == 0


def test_an_edited_key_is_the_pruned_weight(any_model: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    """Setting neurons of the key to zero is what zeroing their columns of the down projection does."""
    places, neurons = blocks_of(any_model), [0, 3, 11]

    def prune(key_BTD: Tensor) -> Tensor:
        return key_BTD.index_fill(2, torch.tensor(neurons), 0.0)

    with torch.no_grad():
        with edit(any_model, {places.key(1): prune}):
            edited_NV = labelled_logits(any_model, batch()).logits_NV
        weight = dict(any_model.named_parameters())[places.down_proj(1)]
        weight.index_fill_(0 if places.transposed else 1, torch.tensor(neurons), 0.0)
        torch.testing.assert_close(labelled_logits(any_model, batch()).logits_NV, edited_NV)


def test_a_part_is_edited_and_the_rest_stays(model_of: Callable[..., PreTrainedModel], batch: Callable[..., Tokens]) -> None:
    phi3 = model_of("phi3")
    places = blocks_of(phi3)
    whole = Site(places.pre_activation(0).name)
    with torch.no_grad():
        with capture(phi3, {0: whole}) as before:
            labelled_logits(phi3, batch())
        with edit(phi3, {places.pre_activation(0): lambda gate: gate + 1}), capture(phi3, {0: whole}) as after:
            labelled_logits(phi3, batch())
    torch.testing.assert_close(after[0][..., : places.d_ff], before[0][..., : places.d_ff] + 1)
    assert torch.equal(after[0][..., places.d_ff :], before[0][..., places.d_ff :])


def test_while_generating_the_prompt_comes_once_and_then_each_token(
    pico_llama: PreTrainedModel, batch: Callable[..., Tokens]
) -> None:
    shapes = []

    def look(hidden_BTD: Tensor) -> Tensor:
        shapes.append(tuple(hidden_BTD.shape))
        return hidden_BTD

    tokens = batch("left")
    with edit(pico_llama, {"model.layers.1": look}):
        pico_llama.generate(
            tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT, max_new_tokens=3, min_new_tokens=3, do_sample=False
        )
    assert shapes == [(3, 10, 32), (3, 1, 32), (3, 1, 32)]


def test_nothing_stays_after_an_exception(pico_llama: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    def fail(_: Tensor) -> Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError), capture(pico_llama, {0: Site("lm_head")}), edit(pico_llama, {"model.layers.0": fail}):
        labelled_logits(pico_llama, batch())
    assert hooks_on(pico_llama) == 0


def test_one_wrong_name_among_right_ones_leaves_no_hook(pico_llama: PreTrainedModel) -> None:
    sites = {0: Site("model.layers.0"), 1: Site("model.layers.0.mlp.down_projection")}
    message = r"no module 'model.layers.0.mlp.down_projection' \(did you mean 'model.layers.0.mlp.down_proj'"
    with pytest.raises(ExpungeError, match=message), capture(pico_llama, sites):
        pytest.fail("the context was entered")
    assert hooks_on(pico_llama) == 0


def test_an_edit_that_changes_shape_or_dtype_is_refused(pico_llama: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    for change in (lambda hidden: hidden[:, :1], lambda hidden: hidden.double()):
        with pytest.raises(ValueError, match=r"the edit of model\.layers\.0 made"), edit(pico_llama, {"model.layers.0": change}):
            labelled_logits(pico_llama, batch())


def test_a_site_that_is_no_hidden_state_is_refused(pico_llama: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    with (
        pytest.raises(ExpungeError, match="not rows by positions by features"),
        capture(pico_llama, {"model.embed_tokens": "input"}),
    ):
        labelled_logits(pico_llama, batch())
    with pytest.raises(ExpungeError, match="not a tensor"), capture(pico_llama, {"model": "output"}):
        labelled_logits(pico_llama, batch())
