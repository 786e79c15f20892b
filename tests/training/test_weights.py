"""Which weights move is what was asked for, or an error that counts what is missing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import expunge
from expunge import ExpungeError, Training
from expunge.methods import NPO, RMU, GradientAscent
from expunge.models.blocks import blocks_of
from expunge.training.weights import alternatives, select_weights, set_trainable

LORA = Training(lora=True, lora_rank=2)


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("mlp", []),
        ("mlp|attn", ["(?:mlp)", "(?:attn)"]),
        (r"layers\.(5|6)\.mlp", [r"layers\.(?:5)\.mlp", r"layers\.(?:6)\.mlp"]),
        (r"a(?:b|c(d|e))", ["a(?:b|c(?:d))", "a(?:b|c(?:e))", "a(?:b)", "a(?:c(d|e))"]),
        (r"a\|b[|)]c", []),
    ],
)
def test_alternatives_are_taken_one_by_one(pattern: str, parts: list[str]) -> None:
    assert list(alternatives(pattern)) == parts
    assert all(re.compile(part) for part in parts)


def test_a_pattern_that_matches_nothing_counts_what_is_there(pico_llama: PreTrainedModel) -> None:
    with pytest.raises(ExpungeError, match=r"'layers\\.9' selects none of the 21 weights that gradient_ascent can move"):
        select_weights(pico_llama, GradientAscent(parameters=r"layers\.9"), Training())


def test_an_alternative_that_matches_nothing_is_named(pico_llama: PreTrainedModel) -> None:
    with pytest.raises(ExpungeError, match=r"selects 6 weights, but 2 of its alternatives selects none: .*\(\?:7\)"):
        select_weights(pico_llama, GradientAscent(parameters=r"layers\.(0|1|6|7)\.mlp"), Training())


def test_a_pattern_that_is_no_pattern_is_said(pico_llama: PreTrainedModel) -> None:
    with pytest.raises(ExpungeError, match="is not a regular expression"):
        select_weights(pico_llama, GradientAscent(parameters="(layers"), Training())


def test_a_tied_head_is_named_by_its_other_name(model_of: Callable[..., PreTrainedModel]) -> None:
    model = model_of("llama", tie_word_embeddings=True)
    with pytest.raises(ExpungeError, match=r"lm_head.weight is the same weight as model.embed_tokens.weight"):
        select_weights(model, GradientAscent(parameters="lm_head"), Training())


def test_rmu_moves_no_weight_that_the_pattern_names_outside_of_its_blocks(pico_llama: PreTrainedModel) -> None:
    with pytest.raises(ExpungeError, match=r"selects 3 weights, of which rmu can move 1, and not model.layers.1.mlp"):
        select_weights(pico_llama, RMU(layer=1, edited=(1,), parameters=r"layers\.1\.mlp"), Training())


def test_ia3_takes_peft_s_layers_or_those_of_the_pattern(pico_llama: PreTrainedModel, model_of: Callable[..., Any]) -> None:
    vectors = Training(lora=True, adapter="ia3")
    assert {name.rpartition(".")[2] for name in select_weights(pico_llama, NPO(), vectors).modules} == {
        "k_proj",
        "v_proj",
        "down_proj",
    }
    assert select_weights(pico_llama, NPO(parameters=r"layers\.0\..*(q|down)_proj"), vectors).modules == (
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.down_proj",
    )
    with pytest.raises(ExpungeError, match=r"no layers of .* for the model type olmo"):
        select_weights(model_of("olmo"), NPO(), vectors)
    with pytest.raises(ValueError, match="give --lora"):
        Training(adapter="ia3")


def test_lora_says_what_has_adapters_and_what_cannot(pico_llama: PreTrainedModel) -> None:
    selection = select_weights(pico_llama, NPO(), LORA)
    assert len(selection.modules) == 14
    matrices = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    assert f"Trained: LoRA adapters of rank 2, on 14 matrices ({matrices}); not on embed_tokens" in selection.said
    with pytest.raises(ExpungeError, match=r"selects 4 matrices, and 1 of them cannot get a LoRA adapter \(model.embed_tokens"):
        select_weights(pico_llama, NPO(parameters=r"embed|layers\.0\.mlp"), LORA)
    with pytest.raises(ExpungeError, match="none is a matrix that has or can get a LoRA adapter"):
        select_weights(pico_llama, NPO(parameters="norm"), LORA)


def test_lora_reaches_the_fused_experts_of_a_mixture(any_mixture: PreTrainedModel) -> None:
    selection = select_weights(any_mixture, NPO(parameters="mlp.experts"), LORA)
    assert len(selection.parameters) == 4
    assert selection.modules == ()
    whole = select_weights(any_mixture, NPO(), LORA)
    assert set(selection.parameters) <= set(whole.parameters)
    adapted = set_trainable(any_mixture, whole, LORA)
    names = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert sum("experts" in n for n in names) == 8
    ids = torch.arange(4, 24).view(2, 10)
    adapted(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for n, p in adapted.named_parameters() if n in names)


def test_experts_take_no_dropout(any_mixture: PreTrainedModel) -> None:
    with pytest.raises(ExpungeError, match=r"weights can get a LoRA adapter only without dropout"):
        select_weights(any_mixture, NPO(), LORA.model_copy(update={"lora_dropout": 0.1}))


def test_rmu_moves_the_fused_experts(any_mixture: PreTrainedModel) -> None:
    selection = select_weights(any_mixture, RMU(layer=1), Training())
    places = blocks_of(any_mixture)
    assert selection.weights == {name for i in (0, 1) for name in places.mlp_out(i)}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("method", [NPO(retain_loss="none"), RMU(layer=1, alpha=0.0)], ids=lambda m: m.name)
def test_a_mixture_is_trained_and_loads_to_the_trained_logits(
    method: NPO,
    lora: bool,
    model_of: Callable[..., PreTrainedModel],
    pico_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    start = model_of("mixtral")
    start.save_pretrained(tmp_path / "model")
    pico_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "forget.jsonl").write_text('{"prompt": "where was anna born ?", "response": "anna was born in oslo ."}\n')
    out = tmp_path / "run"
    training = Training(steps=3, batch_size=1, learning_rate=1e-2, lora=lora)
    expunge.unlearn(method, model=tmp_path / "model", forget=tmp_path / "forget.jsonl", out=out, training=training, quiet=True)
    model, _ = expunge.load(out)
    ids = torch.arange(4, 14)[None]
    with torch.no_grad():
        moved = model(input_ids=ids).logits - start(input_ids=ids).logits
    assert moved.abs().max() > 1e-3
    assert isinstance(model, nn.Module)


def test_an_architecture_that_peft_takes_no_adapter_on_is_a_sentence(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    size = {"vocab_size": len(pico_tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    MambaForCausalLM(MambaConfig(**size)).save_pretrained(tmp_path / "model")
    pico_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "f.jsonl").write_text('{"prompt": "where was anna born ?", "response": "in oslo ."}')
    with pytest.raises(ExpungeError, match=r"PEFT takes no adapter on .*out_proj.* without --lora"):
        expunge.unlearn(
            GradientAscent(),
            model=tmp_path / "model",
            forget=tmp_path / "f.jsonl",
            out=tmp_path / "run",
            training=LORA,
            quiet=True,
        )
