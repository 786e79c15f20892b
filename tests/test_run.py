"""Bad input: one sentence, and nothing written."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import expunge
from expunge import ExpungeError, Training
from expunge.data.encode import Encoder
from expunge.data.example import Example
from expunge.data.format import default_format
from expunge.methods import NPO, GradientAscent, NeuronAdjust, SelectivePruning
from expunge.methods.base import Spec
from expunge.probing import probe_sets

ROW = {"prompt": "where was anna born ?", "response": "anna was born in oslo ."}
OTHER = {"prompt": "where was hugo born ?", "response": "hugo was born in lima ."}


@pytest.fixture
def forget(tmp_path: Path) -> Path:
    path = tmp_path / "forget.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return path


@pytest.fixture
def retain(tmp_path: Path) -> Path:
    path = tmp_path / "retain.jsonl"
    path.write_text(json.dumps(OTHER) + "\n")
    return path


TRAINING = Training(steps=1, batch_size=1)


def refuse(match: str, out: Path, method: object = None, **words: object) -> None:
    with pytest.raises(ExpungeError, match=match) as caught:
        expunge.unlearn(method or NPO(), out=out, **{"training": TRAINING, "quiet": True, **words})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_missing_file_is_named(pico_folder: Path, retain: Path, tmp_path: Path) -> None:
    refuse(r"nowhere\.jsonl", tmp_path / "run", model=pico_folder, forget=tmp_path / "nowhere.jsonl", retain=retain)


def test_a_row_without_a_response_is_named_by_file_and_line(pico_folder: Path, retain: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({"prompt": "who ?"}) + "\n")
    refuse(r"bad\.jsonl.*2", tmp_path / "run", model=pico_folder, forget=path, retain=retain)


def test_an_empty_forget_set_is_refused(pico_folder: Path, retain: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    refuse(r"empty\.jsonl", tmp_path / "run", model=pico_folder, forget=path, retain=retain)


def test_overlap_of_forget_and_retain_warns_with_the_count(pico_folder: Path, forget: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.jsonl"
    both.write_text(json.dumps(ROW) + "\n" + json.dumps(OTHER) + "\n")
    with pytest.warns(UserWarning, match="1"):
        expunge.unlearn(NPO(), model=pico_folder, forget=forget, retain=both, out=tmp_path / "run", training=TRAINING, quiet=True)


def test_a_method_that_needs_a_retain_set_says_so(pico_folder: Path, forget: Path, tmp_path: Path) -> None:
    refuse("needs a retain set", tmp_path / "run", model=pico_folder, forget=forget)


def test_a_model_folder_without_tokenizer_is_refused(pico_folder: Path, forget: Path, retain: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((pico_folder / name).read_bytes())
    refuse("tokenizer", tmp_path / "run", model=bare, forget=forget, retain=retain)


def test_a_pattern_that_selects_no_weight_is_refused(pico_folder: Path, forget: Path, tmp_path: Path) -> None:
    refuse(
        "selects none of the 21 weights",
        tmp_path / "run",
        GradientAscent(parameters="layers.99"),
        model=pico_folder,
        forget=forget,
    )


def test_an_invalid_pattern_is_refused(pico_folder: Path, forget: Path, tmp_path: Path) -> None:
    refuse("not a regular expression", tmp_path / "run", GradientAscent(parameters="("), model=pico_folder, forget=forget)


def test_an_existing_out_needs_resume_or_overwrite(pico_folder: Path, forget: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    with pytest.raises(ExpungeError, match="--resume"):
        expunge.unlearn(GradientAscent(), model=pico_folder, forget=forget, out=out, training=TRAINING, quiet=True)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


def test_resuming_another_run_is_refused(pico_folder: Path, forget: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = {"model": pico_folder, "forget": forget, "out": out, "quiet": True}
    expunge.unlearn(GradientAscent(), training=TRAINING, **words)  # type: ignore[arg-type]
    with pytest.raises(ExpungeError, match="another run"):
        expunge.unlearn(GradientAscent(), training=Training(steps=2, batch_size=1), resume=True, **words)  # type: ignore[arg-type]


def test_resuming_a_finished_run_changes_nothing(pico_folder: Path, forget: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = {"model": pico_folder, "forget": forget, "out": out, "quiet": True, "training": TRAINING}
    expunge.unlearn(GradientAscent(), **words)  # type: ignore[arg-type]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert expunge.unlearn(GradientAscent(), resume=True, **words).steps == 0  # type: ignore[arg-type]
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_overwriting_keeps_the_old_artifact_until_the_new_one_is_complete(
    pico_folder: Path, forget: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    words = {"model": pico_folder, "forget": forget, "out": out, "quiet": True}
    expunge.unlearn(GradientAscent(), training=TRAINING, **words)  # type: ignore[arg-type]
    before = (out / "artifact" / "expunge.json").read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full_disk)
    with pytest.raises(ExpungeError, match="No space left"):
        expunge.unlearn(GradientAscent(), training=Training(steps=2, batch_size=1), overwrite=True, **words)  # type: ignore[arg-type]
    assert (out / "artifact" / "expunge.json").read_bytes() == before
    expunge.verify(out)


def test_run_yaml_repeats_the_run(pico_folder: Path, forget: Path, retain: Path, tmp_path: Path) -> None:
    from expunge.run import execute
    from expunge.spec import Run, build, read_yaml

    first = expunge.unlearn(
        NPO(beta=0.3), model=pico_folder, forget=forget, retain=retain, out=tmp_path / "a", training=TRAINING, quiet=True
    )
    run = build(Run, read_yaml(first.folder / "run.yaml"), "run.yaml")
    execute(run, tmp_path / "b", quiet=True)
    assert (tmp_path / "a" / "run.yaml").read_bytes() == (tmp_path / "b" / "run.yaml").read_bytes()
    assert (tmp_path / "a/artifact/model.safetensors").read_bytes() == (tmp_path / "b/artifact/model.safetensors").read_bytes()


@pytest.mark.parametrize("method", [GradientAscent(), SelectivePruning(), NeuronAdjust()], ids=lambda m: m.method_name())
def test_a_start_model_with_a_broken_weight_is_refused_whatever_the_method(
    pico_llama: LlamaForCausalLM,
    pico_tokenizer: PreTrainedTokenizerFast,
    forget: Path,
    retain: Path,
    tmp_path: Path,
    method: Spec,
) -> None:
    with torch.no_grad():
        pico_llama.model.layers[0].mlp.down_proj.weight[3] = float("nan")
    pico_llama.save_pretrained(tmp_path / "broken")
    pico_tokenizer.save_pretrained(tmp_path / "broken")
    sets = {"forget": forget, "retain": () if isinstance(method, GradientAscent) else retain}
    refuse("broken gives logits that are not numbers", tmp_path / "run", method, model=tmp_path / "broken", **sets)


def test_a_broken_model_is_not_probed(pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast) -> None:
    with torch.no_grad():
        pico_llama.model.layers[1].self_attn.v_proj.weight[0] = float("inf")
    encoder = Encoder(pico_tokenizer, default_format(pico_tokenizer))
    with pytest.raises(ExpungeError, match="logits that are not numbers"):
        probe_sets(pico_llama, encoder, {"forget": [Example("who ?", "anna .")]})
