"""Selective pruning: what is chosen, and that zeroed weights are the model with those activations at zero."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from expunge import ExpungeError
from expunge.data.encode import Encoder
from expunge.data.example import Example, Request
from expunge.data.format import Format
from expunge.methods import SelectivePruning
from expunge.methods.editing.selective_pruning import importance, prune
from expunge.models.activations import Moments
from expunge.models.blocks import blocks_of
from expunge.models.hooks import edit

REQUEST = Request(
    tuple(Example(f"where was {p} born ?", f"{p} was born in oslo .") for p in ["anna", "boris", "clara"]),
    tuple(Example(f"{a} plus two is", f"{a} .") for a in ["one", "three", "ten"]),
)  # fmt: skip
IDS = torch.tensor([[1, 9, 30, 31, 12, 40], [1, 22, 8, 60, 2, 0]])


@pytest.fixture
def encoder(pico_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(pico_tokenizer, Format())


def moments_of(x_LNF: Tensor) -> Moments:
    found = Moments.empty(x_LNF.shape[0], x_LNF.shape[2])
    for layer, x_NF in enumerate(x_LNF):
        found.update(layer, x_NF)
    return found


def test_importance_is_the_stated_mean_over_tokens() -> None:
    x = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
    moments = moments_of(x)
    expected = {
        "abs": x.abs().mean(1),
        "rms": x.square().mean(1).sqrt(),
        "std": x.std(1, correction=0),
        "frequency": (x > 0).double().mean(1),
    }
    for kind, value in expected.items():
        torch.testing.assert_close(importance(moments, kind), value, rtol=1e-6, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_highest_ratios_are_chosen(scope: Any) -> None:
    g = torch.Generator().manual_seed(0)
    forget, retain = (torch.rand(2, 30, 10, generator=g) * torch.rand(2, 1, 10, generator=g) for _ in range(2))
    method = SelectivePruning(percent=20, scope=scope, epsilon=1e-3)
    selected = method.select(moments_of(forget), moments_of(retain), torch.zeros(2, 10, dtype=torch.bool), 20)
    ratio = forget.mean(1) / (retain.mean(1) + 1e-3)
    assert selected.sum() == 4
    if scope == "global":
        assert ratio[selected].min() > ratio[~selected].max()
    else:
        assert selected.sum(1).tolist() == [2, 2]
        assert all(ratio[i][selected[i]].min() > ratio[i][~selected[i]].max() for i in (0, 1))


def test_zeroed_columns_are_bit_for_bit_the_model_with_those_activations_at_zero(any_model: PreTrainedModel) -> None:
    places = blocks_of(any_model)
    pruned_LF = torch.rand(2, places.d_ff, generator=torch.Generator().manual_seed(0)) < 0.2
    edits = {places.key(i): (lambda x, i=i: x * ~pruned_LF[i]) for i in (0, 1)}
    with torch.no_grad():
        before = any_model(IDS).logits
        with edit(any_model, edits):
            hooked = any_model(IDS).logits
        prune(any_model, pruned_LF)
        baked = any_model(IDS).logits
    assert torch.equal(baked, hooked)
    assert not torch.equal(baked, before)
    for i in (0, 1):
        weight = any_model.get_parameter(places.down_proj(i))
        columns = weight.T if places.transposed else weight
        assert torch.equal((columns == 0).all(dim=0), pruned_LF[i])


def test_steps_add_up_to_the_same_share_and_measure_anew(
    pico_llama: PreTrainedModel, model_of: Callable[..., PreTrainedModel], encoder: Encoder
) -> None:
    chosen = {}
    for steps in (1, 3):
        model = model_of("llama", seed=3)
        said = SelectivePruning(percent=12, rounds=steps).apply(model, REQUEST, encoder)
        assert said.startswith("Pruned 12 of 96 neurons")
        places = blocks_of(model)
        chosen[steps] = torch.stack([(model.get_parameter(places.down_proj(i)) == 0).all(dim=0) for i in (0, 1)])
        assert chosen[steps].sum() == 12
    assert not torch.equal(chosen[1], chosen[3])
    assert (chosen[1] & chosen[3]).any()


def test_it_needs_texts_to_keep() -> None:
    with pytest.raises(ExpungeError, match="give --retain"):
        SelectivePruning().require(Request(REQUEST.forget))
