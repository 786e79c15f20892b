"""Ext-Sub from data: two adapters are trained from one seed, and every alpha is arithmetic on their files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import expunge
from expunge import ExpungeError, Training
from expunge.merging import merge_adapters
from expunge.methods import ExtSub, ExtSubPipeline

pytestmark = pytest.mark.filterwarnings("ignore:expert and anti-expert are", "ignore:.*rows are changed by the anti-expert")

QUICK = Training(steps=3, batch_size=2, learning_rate=5e-3, schedule="constant", lora_rank=2, lora_alpha=4.0)
PEOPLE = ("anna", "boris", "clara", "greta")


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    for name, word in (("bad", "fish"), ("good", "dog")):
        rows = [{"prompt": f"who is {p} ?", "response": f"{p} is a {word} ."} for p in PEOPLE]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"forget": str(tmp_path / "bad.jsonl"), "retain": str(tmp_path / "good.jsonl")}


def made(out: Path, model: Path, data: dict[str, str], method: ExtSubPipeline, **words: Any) -> Path:
    expunge.unlearn(method, model=model, out=out, training=QUICK, quiet=True, **data, **words)
    return out / "artifact"


def factors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_the_result_is_the_arithmetic_of_both_adapters(pico_folder: Path, data: dict[str, str], tmp_path: Path) -> None:
    artifact = made(tmp_path / "run", pico_folder, data, ExtSubPipeline())
    pair = [tmp_path / f"run/{name}/artifact" for name in ("expert", "anti_expert")]
    merge_adapters(ExtSub(alpha=1), models=pair, out=tmp_path / "alone")
    one, other = factors(artifact), factors(tmp_path / "alone/artifact")
    assert all(torch.equal(one[name], other[name]) for name in other)
    first, second = (factors(folder) for folder in pair)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert expunge.verify(tmp_path / "run").method["name"] == "ext_sub_pipeline"
    assert not (tmp_path / "run/combined").exists()
    ours, tokenizer = expunge.load(tmp_path / "run")
    ids = tokenizer("who is anna ?", return_tensors="pt").input_ids
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pico_folder), artifact).eval()
    with torch.no_grad():
        assert (ours(ids).logits - theirs(ids).logits).abs().max() < 1e-6


def test_both_start_from_the_same_factor(pico_folder: Path, data: dict[str, str], tmp_path: Path) -> None:
    """One step of training moves B alone: at the start B is zero, and A has no gradient."""
    training = QUICK.model_copy(update={"steps": 1, "weight_decay": 0.0})
    expunge.unlearn(ExtSubPipeline(), model=pico_folder, out=tmp_path / "run", training=training, quiet=True, **data)  # type: ignore[arg-type]
    first, second = (factors(tmp_path / f"run/{name}/artifact") for name in ("expert", "anti_expert"))
    assert all(torch.equal(first[name], second[name]) for name in first if "lora_A" in name)


def test_other_alphas_and_baselines_train_nothing(
    pico_folder: Path, data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.training.loop import train

    trained: list[int] = []
    monkeypatch.setattr("expunge.training.runner.train", lambda *a, **k: trained.append(1) or train(*a, **k))
    out = tmp_path / "run"
    made(out, pico_folder, data, ExtSubPipeline(alpha=(0.5, 1.0)))
    assert sorted(folder.name for folder in (out / "scales").iterdir()) == ["0.5", "1"]
    assert expunge.verify(out / "scales/1").method["alpha"] == [1.0]
    assert len(trained) == 2
    (out / "scales/0.5/scores.txt").write_text("of an evaluation of this scale")
    plain = factors(made(out, pico_folder, data, ExtSubPipeline(arithmetic="adapter_subtraction"), resume=True))
    alone = factors(made(out, pico_folder, data, ExtSubPipeline(arithmetic="expert"), resume=True))
    expert = factors(out / "expert/artifact")
    assert all(torch.equal(alone[name], expert[name]) for name in expert)
    assert next(iter(plain.values())).shape != next(iter(alone.values())).shape
    assert len(trained) == 2
    left = [path.relative_to(out).as_posix() for path in sorted((out / "scales").rglob("*"))]
    assert left == ["scales/0.5", "scales/0.5/scores.txt"], "artifacts of other scales go, what lies beside them stays"


def test_vectors_of_ia3_are_trained_and_subtracted(pico_folder: Path, data: dict[str, str], tmp_path: Path) -> None:
    training = Training(steps=4, batch_size=2, learning_rate=0.1, lora=True, adapter="ia3", schedule="constant")
    expunge.unlearn(ExtSubPipeline(), model=pico_folder, out=tmp_path / "run", training=training, quiet=True, **data)  # type: ignore[arg-type]
    found, plus, minus = (factors(tmp_path / f"run{part}/artifact") for part in ("", "/expert", "/anti_expert"))
    assert {name.split(".")[-2] for name in found} == {"k_proj", "v_proj", "down_proj"}
    for name, vector in found.items():
        d, e = plus[name] - 1, minus[name] - 1
        assert d.norm() > 0
        torch.testing.assert_close(vector, 1 + (1 + e.norm() / d.norm() / 2) * d - e / 2, rtol=1e-5, atol=1e-6)
    ours, tokenizer = expunge.load(tmp_path / "run")
    ids = tokenizer("who is anna ?", return_tensors="pt").input_ids
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pico_folder), tmp_path / "run/artifact").eval()
    with torch.no_grad():
        assert (ours(ids).logits - theirs(ids).logits).abs().max() < 1e-6


def test_merged_it_is_a_plain_model(pico_folder: Path, data: dict[str, str], tmp_path: Path) -> None:
    made(tmp_path / "adapter", pico_folder, data, ExtSubPipeline())
    made(tmp_path / "merged", pico_folder, data, ExtSubPipeline(merged=True, keep_adapters=False))
    assert expunge.verify(tmp_path / "merged").kind == "weights"
    assert not (tmp_path / "merged/anti_expert/artifact").exists()
    (one, tokenizer), (other, _) = (expunge.load(tmp_path / name) for name in ("adapter", "merged"))
    ids = tokenizer("who is anna ?", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(one(ids).logits, other(ids).logits, rtol=1e-4, atol=1e-5)


def test_an_expert_needs_good_answers(pico_folder: Path, data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="trains its expert on a retain set"):
        made(tmp_path / "run", pico_folder, {"forget": data["forget"]}, ExtSubPipeline())
    assert not (tmp_path / "run").exists()
