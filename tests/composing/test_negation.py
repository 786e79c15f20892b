"""A negated expert: exact, from the same training at any scale, and never a second model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import expunge
from expunge import ExpungeError, Training
from expunge.methods import TaskVectorNegation
from expunge.run import execute
from expunge.spec import Run

QUICK = Training(steps=4, batch_size=2, learning_rate=1e-2, schedule="constant")
LORA = QUICK.model_copy(update={"lora": True, "lora_rank": 2, "lora_alpha": 2.0})


def negated(out: Path, model: Path, data: dict[str, Any], method: TaskVectorNegation, training: Training, **words: Any) -> Path:
    expunge.unlearn(method, model=model, forget=data["forget"], out=out, training=training, quiet=True, **words)
    return out / "artifact"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_full_weights_are_as_far_on_the_other_side(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    artifact = negated(tmp_path / "run", pico_folder, data, TaskVectorNegation(scale=0.5), QUICK)
    start, expert, found = weights(pico_folder), weights(tmp_path / "run/expert/artifact"), weights(artifact)
    assert any(not torch.equal(start[n], expert[n]) for n in start)
    for name, value in found.items():
        torch.testing.assert_close(value, start[name] - 0.5 * (expert[name] - start[name]), rtol=1e-6, atol=1e-7)
    assert expunge.verify(tmp_path / "run").method["name"] == "task_vector_negation"
    assert not (tmp_path / "run/merged").exists()
    provenance = json.loads((tmp_path / "run/provenance.json").read_text())
    assert provenance["counts"] == {"forget": 12}
    model, tokenizer = expunge.load(tmp_path / "run")
    assert model.generate(**tokenizer("what is", return_tensors="pt"), max_new_tokens=2).shape[1] == 5


def test_vectors_of_ia3_are_as_far_on_the_other_side_of_one(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    vectors = QUICK.model_copy(update={"lora": True, "adapter": "ia3", "learning_rate": 0.1})
    artifact = negated(tmp_path / "run", pico_folder, data, TaskVectorNegation(scale=0.5), vectors)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "run/expert/artifact", artifact))
    for name, vector in one.items():
        torch.testing.assert_close(other[name] - 1, -0.5 * (vector - 1))
        assert not torch.equal(vector, torch.ones_like(vector))


def test_an_adapter_is_turned_bit_by_bit_and_scaled_in_its_alpha(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    artifact = negated(tmp_path / "run", pico_folder, data, TaskVectorNegation(scale=1.5), LORA)
    expert = tmp_path / "run/expert/artifact"
    one, other = load_file(expert / "adapter_model.safetensors"), load_file(artifact / "adapter_model.safetensors")
    assert one.keys() == other.keys()
    for name, factor in one.items():
        assert torch.equal(other[name], -factor if "lora_B" in name else factor)
        assert factor.abs().sum() > 0
    assert json.loads((artifact / "adapter_config.json").read_text())["lora_alpha"] == 3.0
    assert expunge.verify(tmp_path / "run").kind == "adapter"
    base, tokenizer = expunge.load(pico_folder)
    ids = tokenizer("red dog and blue cat", return_tensors="pt").input_ids
    start = base.state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    with torch.no_grad():
        change = one[f"base_model.model.{name[:-7]}.lora_B.weight"] @ one[f"base_model.model.{name[:-7]}.lora_A.weight"]
        merged = expunge.load(tmp_path / "run")[0].merge_and_unload()
        torch.testing.assert_close(merged.state_dict()[name], start[name] - 1.5 * change, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(merged(ids).logits, base(ids).logits)


def test_merged_weights_are_the_turned_adapter(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    negated(tmp_path / "adapter", pico_folder, data, TaskVectorNegation(), LORA)
    negated(tmp_path / "merged", pico_folder, data, TaskVectorNegation(merged=True), LORA)
    assert expunge.verify(tmp_path / "merged").kind == "weights"
    (one, tokenizer), (other, _) = (expunge.load(tmp_path / name) for name in ("adapter", "merged"))
    ids = tokenizer("red dog and blue cat", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(one(ids).logits, other(ids).logits, rtol=1e-4, atol=1e-5)


def test_another_scale_uses_the_expert_again(
    pico_folder: Path, data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, trained = tmp_path / "run", []
    monkeypatch.setattr("expunge.training.runner.train", lambda *a, **k: trained.append(1) or train(*a, **k))
    from expunge.training.loop import train

    negated(out, pico_folder, data, TaskVectorNegation(scale=1.0), LORA)
    for scale in (0.5, 2.0):
        negated(out, pico_folder, data, TaskVectorNegation(scale=scale), LORA, resume=True)
        assert json.loads((out / "artifact/adapter_config.json").read_text())["lora_alpha"] == 2.0 * scale
        assert f"scale: {scale}" in (out / "run.yaml").read_text()
    assert len(trained) == 1
    with pytest.raises(ExpungeError, match=r"expert/run\.yaml describes another run"):
        negated(out, pico_folder, data, TaskVectorNegation(), LORA.model_copy(update={"steps": 5}), resume=True)


@pytest.mark.parametrize("training", [LORA, QUICK], ids=["lora", "full"])
def test_one_model_is_built_to_train_the_expert_and_none_to_negate_it(
    training: Training, pico_folder: Path, data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, make = [], LlamaForCausalLM.__init__
    monkeypatch.setattr(LlamaForCausalLM, "__init__", lambda self, *a, **k: built.append(1) or make(self, *a, **k))
    run = Run(model=str(pico_folder), forget=(str(data["forget"]),), method=TaskVectorNegation(), training=training)
    execute(run, tmp_path / "run", quiet=True, measures=False)
    assert len(built) == 1
    again = run.model_copy(update={"method": TaskVectorNegation(scale=0.5)})
    execute(again, tmp_path / "run", quiet=True, resume=True, measures=False)
    assert len(built) == 1
    expunge.load(tmp_path / "run")
    assert len(built) == 2


def test_the_expert_can_be_deleted(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    negated(tmp_path / "run", pico_folder, data, TaskVectorNegation(keep_expert=False), LORA)
    assert not (tmp_path / "run/expert").exists()
    assert expunge.verify(tmp_path / "run").kind == "adapter"


def test_it_forgets_what_its_expert_learned(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    training = QUICK.model_copy(update={"steps": 20, "learning_rate": 3e-3, "batch_size": 12})
    negated(tmp_path / "run", pico_folder, data, TaskVectorNegation(), training)
    losses = []
    for folder in (tmp_path / "run/expert/artifact", pico_folder, tmp_path / "run"):
        model, tokenizer = expunge.load(folder)
        ids = tokenizer("red dog and blue cat one", return_tensors="pt").input_ids
        with torch.no_grad():
            losses.append(float(model(ids, labels=ids).loss))
    assert losses[0] < losses[1] < losses[2]


def test_only_the_chosen_weights_move(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    artifact = negated(tmp_path / "run", pico_folder, data, TaskVectorNegation(parameters="layers.1.mlp"), QUICK)
    start, found = weights(pico_folder), weights(artifact)
    assert {n for n in start if not torch.equal(start[n], found[n])} == {n for n in start if "layers.1.mlp" in n}


def test_bad_input_leaves_nothing_behind(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    for words, said in (({"where": "severity > 9"}, "none of 12"), ({"where": "topic = a"}, "no attribute 'topic'")):
        with pytest.raises(ExpungeError, match=said):
            negated(tmp_path / "run", pico_folder, data, TaskVectorNegation(), QUICK, **words)
    with pytest.raises(ExpungeError, match="selects none of the 21 weights"):
        negated(tmp_path / "run", pico_folder, data, TaskVectorNegation(parameters="layers.9"), QUICK)
    assert not (tmp_path / "run").exists()
