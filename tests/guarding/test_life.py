"""A guard's life: fitted by a run, saved without weights, loaded onto its own model, checked, detached."""

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import expunge
from expunge import ExpungeError, Training
from expunge.data.encode import Encoder
from expunge.data.example import Example, Request
from expunge.data.format import Format
from expunge.evaluation.engine import Engine
from expunge.guarding import life
from expunge.loading import load
from expunge.methods import GradientAscent, KeySpaceDetection, NeuronAdjust, SelectivePruning
from expunge.models.folder import file_hash
from expunge.records import write_json

PEOPLE = ["anna", "boris", "clara", "dario", "elena", "fyodor", "greta", "hugo", "irma", "jonas"]
CITIES = ["berlin", "paris", "tokyo", "lima", "cairo", "oslo"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
REPLY = "i do not know that ."
FORMAT = Format(template="question: {prompt} answer: {response}")
KEY_SPACE = KeySpaceDetection(abstention=REPLY, held_out=0.2)
METHODS = [NeuronAdjust(percent=25), KEY_SPACE, KeySpaceDetection(action="steer", abstention=REPLY)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    rows = {
        "forget": [(f"where was {p} born ?", f"{p} was born in {c} .") for p in PEOPLE for c in CITIES],
        "retain": [(f"{a} plus {b} is", f"{b} .") for a in NUMBERS for b in NUMBERS],
    }
    for name, pairs in rows.items():
        text = "".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.jsonl" for name in rows}


@pytest.fixture(scope="module")
def make(pico_folder: Path, data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """A run of a method, made once."""
    made: dict[str, Path] = {}

    def run(method: Any) -> Path:
        key = method.model_dump_json()
        if key not in made:
            made[key] = tmp_path_factory.mktemp("runs") / method.name
            expunge.unlearn(method, model=pico_folder, out=made[key], format=FORMAT, quiet=True, **data)
        return made[key]

    return run


def ask(model: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[str]:
    inputs = tokenizer([f"question: {p} answer:" for p in prompts], return_tensors="pt", padding=True, padding_side="left")
    written = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    said: list[str] = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'action', '')}")
def test_a_run_leaves_a_guard_that_loads_verifies_and_acts(method: Any, make: Callable[[Any], Path], pico_folder: Path) -> None:
    out = make(method)
    assert {p.name for p in out.iterdir()} == {"run.yaml", "inputs.json", "provenance.json", "artifact"}
    manifest = expunge.verify(out)
    assert (manifest.kind, manifest.claim, manifest.family) == ("guard", "L0", "guarding")
    assert "guard.safetensors" in manifest.files
    assert not any(name.startswith(("model", "pytorch")) for name in manifest.files)
    assert sum(p.stat().st_size for p in (out / "artifact").iterdir()) < 200_000
    model, tokenizer = expunge.load(out)
    asked = ["where was anna born ?", "two plus three is"]
    guarded = ask(model, tokenizer, asked)
    model.expunge_guard.detach()
    plain = ask(model, tokenizer, asked)
    assert guarded[0] != plain[0]
    if method.name == "key_space":
        assert guarded[1] == plain[1]
    if method == KEY_SPACE:
        assert guarded[0] == REPLY
    fresh = LlamaForCausalLM.from_pretrained(pico_folder).eval()
    assert ask(fresh, tokenizer, asked) == plain


def test_a_run_with_the_same_fields_gives_the_same_guard(
    make: Callable[[Any], Path], pico_folder: Path, data: dict[str, Any], tmp_path: Path
) -> None:
    first = make(METHODS[0])
    expunge.unlearn(METHODS[0], model=pico_folder, out=tmp_path / "again", format=FORMAT, quiet=True, **data)
    one, two = (load_file(run / "artifact" / life.FILE) for run in (first, tmp_path / "again"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    again = expunge.unlearn(METHODS[0], model=pico_folder, out=first, format=FORMAT, quiet=True, resume=True, **data)
    assert again.stopped == "the run was complete already"


def test_a_guarded_model_is_scored_as_it_generates(make: Callable[[Any], Path]) -> None:
    model, tokenizer = expunge.load(make(KEY_SPACE))
    encoder = Encoder(tokenizer, FORMAT)
    pairs = [("where was hugo born ?", "hugo was born in lima ."), ("where was hugo born ?", REPLY), ("two plus six is", "six .")]
    truth, reply, kept = Engine(model, encoder.pad_id).score(encoder.encode_answers(pairs))
    assert truth.logp.mean() < -30
    assert reply.logp.mean() == pytest.approx(0, abs=1e-6)
    assert reply.hit.all()
    model.expunge_guard.detach()
    assert kept.logp == pytest.approx(Engine(model, encoder.pad_id).score(encoder.encode_answers(pairs[2:]))[0].logp, abs=1e-5)


def test_a_guarded_model_is_not_saved_as_a_model_folder(make: Callable[[Any], Path], tmp_path: Path) -> None:
    model, _ = expunge.load(make(KEY_SPACE))
    with pytest.raises(ExpungeError, match="would be the original model"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model.expunge_guard.detach()
    model.save_pretrained(tmp_path / "model")


@pytest.mark.parametrize("of", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_guarded_model_is_not_copied_without_its_guard(of: Callable[[Any], object], make: Callable[[Any], Path]) -> None:
    model, _ = expunge.load(make(KEY_SPACE))
    with pytest.raises(ExpungeError, match=r"neither copied nor pickled.* with expunge\.load"):
        of(model)
    model.expunge_guard.detach()
    of(model)


def test_below_a_guard_on_an_adapter_the_base_or_the_adapter_may_be_given(
    pico_folder: Path, data: dict[str, Any], tmp_path: Path
) -> None:
    base, lora, guard = tmp_path / "base", tmp_path / "lora", tmp_path / "guard"
    shutil.copytree(pico_folder, base)
    training = Training(steps=1, batch_size=2, learning_rate=1e-3, lora=True, lora_rank=2)
    expunge.unlearn(GradientAscent(), model=base, forget=data["forget"], out=lora, format=FORMAT, training=training, quiet=True)
    expunge.unlearn(KEY_SPACE, model=lora, out=guard, format=FORMAT, quiet=True, **data)
    whole = expunge.load(guard)[0](torch.tensor([[1, 5, 6]])).logits
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(ExpungeError, match=r"base model of the adapter .* was .*base, which is not there any more.* --base"):
        expunge.load(guard)
    assert torch.equal(expunge.load(guard, base=str(moved))[0](torch.tensor([[1, 5, 6]])).logits, whole)
    (tmp_path / "base").symlink_to(moved)
    assert torch.equal(expunge.load(guard, base=str(lora))[0](torch.tensor([[1, 5, 6]])).logits, whole)
    (tmp_path / "base").unlink()
    other = LlamaForCausalLM.from_pretrained(moved)
    with torch.no_grad():
        other.model.norm.weight.mul_(2)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ExpungeError, match=r"the adapter .* was made for a base model with hash \w{12}, but .*other has \w{12}"):
        expunge.load(guard, base=str(tmp_path / "other"))


def test_a_guard_for_another_model_is_refused_unless_forced(
    make: Callable[[Any], Path], tmp_path: Path, pico_folder: Path
) -> None:
    other = LlamaForCausalLM.from_pretrained(pico_folder)
    with torch.no_grad():
        for block in other.model.layers:
            block.mlp.up_proj.weight.mul_(50)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ExpungeError, match=r"made for a base model with hash \w{12}, but .*other has \w{12}.*--force"):
        load(make(KEY_SPACE), base=str(tmp_path / "other"))
    with pytest.warns(UserWarning, match="does not act on this model"):
        model, _ = load(make(KEY_SPACE), base=str(tmp_path / "other"), force=True)
    model.expunge_guard.detach()


def test_a_guard_that_does_not_act_is_refused_by_its_canaries(make: Callable[[Any], Path], tmp_path: Path) -> None:
    """A box moved away, checksums made good again: only the canary prompts can tell."""
    import shutil

    folder = tmp_path / "artifact"
    shutil.copytree(make(KEY_SPACE) / "artifact", folder)
    state = load_file(folder / life.FILE)
    save_file({**state, "centre": state["centre"] + 1000}, folder / life.FILE)
    with pytest.raises(ExpungeError, match="differs from its checksum"):
        expunge.verify(folder)
    manifest = json.loads((folder / "expunge.json").read_text())
    manifest["files"][life.FILE] = file_hash(folder / life.FILE)
    write_json(folder / "expunge.json", manifest)
    expunge.verify(folder)
    with pytest.raises(ExpungeError, match=r"does not act on this model: it changes what follows its 4 canary prompts by 0.000"):
        expunge.load(folder)


def test_a_refused_guard_leaves_nothing_on_the_model(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = Encoder(pico_tokenizer, FORMAT)
    rows = [tuple(Example(f"{a} plus {b} is", ".") for a in part for b in NUMBERS) for part in (NUMBERS[:4], NUMBERS[4:])]
    state = dict(life.fit(KEY_SPACE.model_copy(update={"false_abstain": 0.9}), pico_llama, Request(*rows), encoder))
    state["canary.effect"] = torch.ones_like(state["canary.effect"])
    state["centre"] = state["centre"] + 1000
    before = (sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pico_llama.modules()), set(vars(pico_llama)))
    with pytest.raises(ExpungeError, match="does not act"):
        life.attach(pico_llama, KEY_SPACE, state, encoder)
    assert (sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pico_llama.modules()), set(vars(pico_llama))) == before


def test_a_model_takes_one_guard_at_a_time(pico_llama: LlamaForCausalLM, make: Callable[[Any], Path]) -> None:
    model, tokenizer = expunge.load(make(KEY_SPACE))
    state = life.read(make(METHODS[0]) / "artifact")
    encoder = Encoder(tokenizer, FORMAT)
    with pytest.raises(ExpungeError, match="has a guard already"):
        life.attach(model, METHODS[0], state, encoder)
    model.expunge_guard.detach()
    life.attach(model, METHODS[0], state, encoder).detach()


def test_without_canaries_the_artifact_holds_no_prompt(pico_folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    expunge.unlearn(
        NeuronAdjust(percent=25, canaries=0), model=pico_folder, out=tmp_path / "run", format=FORMAT, quiet=True, **data
    )
    assert not any(name.startswith("canary") for name in life.read(tmp_path / "run" / "artifact"))
    assert "as tokens" not in (tmp_path / "run" / "artifact" / "README.md").read_text()
    expunge.load(tmp_path / "run")


def test_missing_texts_are_said_before_a_model_is_loaded(data: dict[str, Any], tmp_path: Path) -> None:
    for method in (NeuronAdjust(), KeySpaceDetection(), SelectivePruning()):
        with pytest.raises(ExpungeError, match="give --retain"):
            expunge.unlearn(method, model=tmp_path / "no such model", forget=data["forget"], out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_pruning_leaves_a_plain_model(make: Callable[[Any], Path]) -> None:
    out = make(SelectivePruning(percent=5))
    assert expunge.verify(out).kind == "weights"
    assert "Pruned 7 of 128 neurons" in (out / "artifact" / "README.md").read_text()
    model, _ = expunge.load(out)
    plain = LlamaForCausalLM.from_pretrained(out / "artifact")
    ids = torch.tensor([[1, 9, 30]])
    assert torch.equal(model(ids).logits, plain.eval()(ids).logits)


def test_calibration_is_there_for_reports(make: Callable[[Any], Path]) -> None:
    measured = json.loads((make(KEY_SPACE) / "artifact" / "calibration.json").read_text())
    assert len(measured["forget"]) == 12
    assert len(measured["retain"]) == 64
    assert max(measured["forget"]) < 1 < min(measured["retain"])


def test_an_evaluation_through_a_guard_records_how_often_it_acted(make: Callable[[Any], Path], tmp_path: Path) -> None:
    from expunge.evaluation.metrics import Accuracy
    from expunge.evaluation.task import Suite, Task

    asked = (Example("where was hugo born ?", "lima ."), Example("two plus six is", "six ."), Example("one plus six is", "six ."))
    suite = Suite("own", (Task("t", asked, (Accuracy(),), "retain"),), lambda _: [])
    model, tokenizer = expunge.load(make(KEY_SPACE))
    found = expunge.evaluate(model, tokenizer, suite=suite, out=tmp_path, quiet=True)
    assert found.guard is not None
    assert (found.guard.decided, found.guard.acted) == (3, 1)
    model.expunge_guard.detach()
    assert expunge.evaluate(model, tokenizer, suite=suite, quiet=True).guard is None
