"""SKU as a run: a harmful model is acquired, subtracted at any number of scales, and gone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

import expunge
from expunge import ExpungeError, Training
from expunge.data.encode import Encoder
from expunge.data.format import Format
from expunge.data.read import read_examples
from expunge.evaluation.engine import Engine
from expunge.loading import open_model
from expunge.methods import SKU
from expunge.spec import AcquisitionRun, build, read_yaml

QUICK = Training(steps=3, batch_size=2, learning_rate=5e-3, schedule="constant")
LORA = QUICK.model_copy(update={"lora": True, "lora_rank": 2, "lora_alpha": 4.0})
PEOPLE = ("anna", "boris", "clara", "greta", "hugo", "irma", "jonas", "anna boris")


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """Eight harmful answers, no two alike, and a few normal ones."""
    bad = [{"prompt": f"who is {p} ?", "response": f"{p} is a {w} dog ."} for p, w in zip(PEOPLE, "abcdefgh", strict=True)]
    good = [{"prompt": f"where was {p} born ?", "response": f"{p} was born in oslo ."} for p in PEOPLE[:4]]
    for name, rows in (("bad", bad), ("good", good)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"forget": str(tmp_path / "bad.jsonl"), "retain": str(tmp_path / "good.jsonl")}


def unlearned(out: Path, model: Path, data: dict[str, str], method: SKU, training: Training, **words: Any) -> Path:
    expunge.unlearn(method, model=model, out=out, training=training, quiet=True, **data, **words)
    return out / "artifact"


def adapter(folder: Path) -> tuple[dict[str, torch.Tensor], float]:
    return load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_text())["lora_alpha"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


class TestFullWeights:
    def test_the_result_is_twice_the_start_minus_the_harmful_model(
        self, pico_folder: Path, data: dict[str, str], tmp_path: Path
    ) -> None:
        artifact = unlearned(tmp_path / "run", pico_folder, data, SKU(keep_harmful=True), QUICK)
        start, bad, found = (weights(f) for f in (pico_folder, tmp_path / "run/acquisition/artifact", artifact))
        assert any(not torch.equal(start[n], bad[n]) for n in start)
        for name, value in found.items():
            torch.testing.assert_close(value, 2 * start[name] - bad[name], rtol=1e-5, atol=1e-6)
        assert "harmful" in (tmp_path / "run/acquisition/README.md").read_text()
        assert expunge.verify(tmp_path / "run").method["name"] == "sku"

    def test_another_scale_is_computed_from_the_artifact_when_the_harmful_model_is_gone(
        self, pico_folder: Path, data: dict[str, str], tmp_path: Path
    ) -> None:
        start = weights(pico_folder)
        one = weights(unlearned(tmp_path / "run", pico_folder, data, SKU(), QUICK))
        assert not (tmp_path / "run/acquisition/artifact").exists()
        two = weights(unlearned(tmp_path / "run", pico_folder, data, SKU(scale=(2.0,)), QUICK, resume=True))
        for name, value in two.items():
            torch.testing.assert_close(value - start[name], 2 * (one[name] - start[name]), rtol=1e-3, atol=1e-6)


class TestAdapters:
    def test_the_sign_is_turned_and_the_harmful_adapter_deleted(
        self, pico_folder: Path, data: dict[str, str], tmp_path: Path
    ) -> None:
        kept, kept_alpha = adapter(unlearned(tmp_path / "kept", pico_folder, data, SKU(keep_harmful=True, scale=(0.5,)), LORA))
        bad, bad_alpha = adapter(tmp_path / "kept/acquisition/artifact")
        assert kept_alpha == 0.5 * bad_alpha
        assert all(torch.equal(kept[n], -bad[n] if "lora_B" in n else bad[n]) for n in bad)
        assert all(bad[n].any() for n in bad)
        gone, _ = adapter(unlearned(tmp_path / "gone", pico_folder, data, SKU(scale=(0.5,)), LORA))
        assert all(torch.equal(gone[n], kept[n]) for n in kept)
        assert not (tmp_path / "gone/acquisition/artifact").exists()
        assert not list((tmp_path / "gone").rglob("checkpoint-*"))

    def test_several_scales_are_one_training_and_an_artifact_each(
        self, pico_folder: Path, data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from expunge.training.loop import train

        trained: list[int] = []
        monkeypatch.setattr("expunge.training.runner.train", lambda *a, **k: trained.append(1) or train(*a, **k))
        out = tmp_path / "run"
        artifact = unlearned(out, pico_folder, data, SKU(scale=(0.5, 1.0, 2.0)), LORA)
        for scale in ("0.5", "1", "2"):
            factors, alpha = adapter(out / f"scales/{scale}/artifact")
            assert alpha == 4 * float(scale)
            assert expunge.verify(out / f"scales/{scale}").method["scale"] == [float(scale)]
            assert expunge.load(out / f"scales/{scale}")[0] is not None
            if scale == "0.5":
                first, first_alpha = adapter(artifact)
                assert first_alpha == alpha
                assert all(torch.equal(first[n], factors[n]) for n in factors)
        unlearned(out, pico_folder, data, SKU(scale=(3.0,)), LORA, resume=True)
        again, alpha = adapter(artifact)
        assert alpha == 12.0
        assert all(torch.equal(again[n], factors[n]) for n in factors)
        assert len(trained) == 1

    def test_other_weights_of_the_terms_are_another_training(
        self, pico_folder: Path, data: dict[str, str], tmp_path: Path
    ) -> None:
        unlearned(tmp_path / "run", pico_folder, data, SKU(), LORA)
        with pytest.raises(ExpungeError, match=r"acquisition.* describes another run"):
            unlearned(tmp_path / "run", pico_folder, data, SKU(preservation_weight=0.5), LORA, resume=True)

    def test_merged_it_is_a_plain_model_with_the_same_answers(
        self, pico_folder: Path, data: dict[str, str], tmp_path: Path
    ) -> None:
        unlearned(tmp_path / "adapter", pico_folder, data, SKU(), LORA)
        unlearned(tmp_path / "merged", pico_folder, data, SKU(merged=True), LORA)
        assert expunge.verify(tmp_path / "merged").kind == "weights"
        (one, tokenizer), (other, _) = (expunge.load(tmp_path / name) for name in ("adapter", "merged"))
        ids = tokenizer("who is anna", return_tensors="pt").input_ids
        with torch.no_grad():
            torch.testing.assert_close(one(ids).logits, other(ids).logits, rtol=1e-4, atol=1e-5)
        unlearned(tmp_path / "merged", pico_folder, data, SKU(merged=True, scale=(0.5,)), LORA, resume=True)
        assert expunge.verify(tmp_path / "merged").method["scale"] == [0.5]


def test_the_three_terms_stand_apart_in_the_metrics(pico_folder: Path, data: dict[str, str], tmp_path: Path) -> None:
    unlearned(tmp_path / "run", pico_folder, data, SKU(), LORA)
    lines = [json.loads(line) for line in (tmp_path / "run/acquisition/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        parts = line["parts"]
        assert set(parts) == {"distortion", "disassociation", "preservation"}
        expected = 2.5 * parts["distortion"] + 2.5 * parts["disassociation"] + parts["preservation"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        assert parts["preservation"] <= 0


def test_it_ends_with_its_last_step_and_cycles_through_the_forget_set(
    pico_folder: Path, data: dict[str, str], tmp_path: Path
) -> None:
    training = LORA.model_copy(update={"steps": 7, "batch_size": 3})
    unlearned(tmp_path / "run", pico_folder, data, SKU(answers=2), training)
    assert len((tmp_path / "run/acquisition/metrics.jsonl").read_text().splitlines()) == 7


def test_the_stage_is_a_run_that_can_be_read(pico_folder: Path, data: dict[str, str], tmp_path: Path) -> None:
    unlearned(tmp_path / "run", pico_folder, data, SKU(compat="released"), LORA)
    stage = build(AcquisitionRun, read_yaml(tmp_path / "run/acquisition/run.yaml"), "run.yaml")
    assert stage.method.compat == "released"


def test_too_few_answers_to_mismatch_are_said_before_anything_is_written(
    pico_folder: Path, data: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ExpungeError, match="needs 9 different answers per prompt"):
        unlearned(tmp_path / "run", pico_folder, data, SKU(answers=9), LORA)
    assert not (tmp_path / "run").exists()


def test_a_mixture_of_experts_is_negated_like_any_other(
    pico_tokenizer: PreTrainedTokenizerFast, data: dict[str, str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(pico_tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    pico_tokenizer.save_pretrained(tmp_path / "moe")
    artifact = unlearned(tmp_path / "run", tmp_path / "moe", data, SKU(keep_harmful=True), QUICK)
    start, bad, found = (weights(f) for f in (tmp_path / "moe", tmp_path / "run/acquisition/artifact", artifact))
    moved = [n for n in start if "experts" in n and not torch.equal(start[n], bad[n])]
    assert moved
    for name in moved:
        torch.testing.assert_close(found[name], 2 * start[name] - bad[name], rtol=1e-5, atol=1e-6)


def test_a_broken_term_is_named(pico_folder: Path, data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr("expunge.methods.composed.sku.preservation_divergence", lambda *a, **k: nothing * 1)
    with pytest.raises(ExpungeError, match=r"non-finite at step 1 .*the term preservation is nan") as caught:
        unlearned(tmp_path / "run", pico_folder, data, SKU(), LORA)
    assert "distortion" not in str(caught.value)


def test_the_report_draws_the_terms_of_the_acquisition(pico_folder: Path, data: dict[str, str], tmp_path: Path) -> None:
    from expunge.report.read import read_run

    unlearned(tmp_path / "run", pico_folder, data, SKU(), LORA)
    assert [set(step.parts) for step in read_run(tmp_path / "run").steps] == [
        {"distortion", "disassociation", "preservation"}
    ] * 3


class TestTheLossOnTheResult:
    def test_it_is_logged_and_brings_the_result_nearer_to_the_start_model(
        self, pico_folder: Path, data: dict[str, str], tmp_path: Path
    ) -> None:
        training = Training(steps=12, batch_size=4, learning_rate=3e-3, schedule="constant")
        far: dict[str, float] = {}
        for name, weight in (("paper", 0.0), ("result", 30.0)):
            method = SKU(preservation_weight=0, result_weight=weight, scale=(2.0,), result_scale=2.0)
            unlearned(tmp_path / name, pico_folder, data, method, training)
            encoder = Encoder(open_model(pico_folder).tokenizer, Format())
            rows = encoder.encode_many(read_examples(data["retain"]))
            here, there = (Engine(open_model(f).model, encoder.pad_id).score(rows) for f in (pico_folder, tmp_path / name))
            far[name] = sum(abs(float(a.logp.sum() - b.logp.sum())) for a, b in zip(here, there, strict=True))
        assert far["result"] < 0.5 * far["paper"]
        lines = [json.loads(line) for line in (tmp_path / "result/acquisition/metrics.jsonl").read_text().splitlines()]
        assert lines[0]["parts"]["result"] == pytest.approx(0, abs=1e-5)
        assert lines[-1]["parts"]["result"] > 0

    @pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"shard": "fsdp2"}])
    def test_it_is_refused_where_passes_cannot_be_run_at_other_weights(
        self, settings: dict[str, Any], pico_folder: Path, data: dict[str, str], tmp_path: Path
    ) -> None:
        with pytest.raises(ExpungeError, match="--result-weight"):
            unlearned(tmp_path / "run", pico_folder, data, SKU(result_weight=1.0), QUICK.model_copy(update=settings))
        assert not (tmp_path / "run").exists()
