"""A run goes on with what it was begun with or not at all, loses no step, and writes where it may."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import expunge
from expunge import ExpungeError, Training
from expunge.folders import RESERVED, check_apart
from expunge.loading import open_model
from expunge.methods import GradientAscent, NeuronAdjust, TaskVectorNegation
from expunge.models.folder import file_hash
from expunge.models.load import causal_model

ROW = {"prompt": "where was anna born ?", "response": "anna was born in oslo ."}
OTHER = {"prompt": "where was hugo born ?", "response": "hugo was born in lima ."}
TRAINING = Training(steps=3, batch_size=1, checkpoint_every=100)


@pytest.fixture
def forget(tmp_path: Path) -> Path:
    path = tmp_path / "forget.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return path


@pytest.fixture
def words(pico_folder: Path, forget: Path, tmp_path: Path) -> dict[str, Any]:
    """Of a run in tmp_path/run on a copy of the model, which a test may spoil."""
    model = shutil.copytree(pico_folder, tmp_path / "model")
    return {"model": model, "forget": forget, "out": tmp_path / "run", "quiet": True, "training": TRAINING}


def steps(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def fail_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)


def test_a_full_disk_at_the_end_is_a_sentence_and_costs_no_step(words: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = expunge.unlearn(GradientAscent(), **{**words, "out": words["out"].with_name("whole")})
    with monkeypatch.context() as patch:
        fail_to_write(patch)
        with pytest.raises(ExpungeError, match=r"could not be written .*No space left.*--resume") as error:
            expunge.unlearn(GradientAscent(), **words)
    assert "\n" not in str(error.value)
    assert not (words["out"] / "artifact").exists()
    monkeypatch.setattr("expunge.training.loop._step", lambda *_, **__: pytest.fail("a step was trained again"))
    again = expunge.unlearn(GradientAscent(), resume=True, **words)
    assert steps(words["out"]) == [1, 2, 3]
    assert file_hash(again.artifact / "model.safetensors") == file_hash(whole.artifact / "model.safetensors")
    assert not list(words["out"].glob("checkpoint-*"))


def test_too_little_room_is_said_before_the_first_step(words: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("expunge.folders.shutil.disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(ExpungeError, match=r"this run with its checkpoints takes .* has 10 kB free; make room"):
        expunge.unlearn(GradientAscent(), **words)
    assert not words["out"].exists()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="a small file system has to be mounted")
def test_a_small_disk_is_refused_at_once_and_filled_up_in_the_middle_it_is_a_sentence(
    words: dict[str, Any], tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = small_disk / "run"
    with pytest.raises(ExpungeError, match="make room, or give another --out"):
        expunge.unlearn(GradientAscent(), **{**words, "out": out})
    assert not out.exists()
    monkeypatch.setattr("expunge.training.runner.check_room", lambda *_: None)
    with pytest.raises(ExpungeError, match="has no room for the last checkpoint"):
        expunge.unlearn(GradientAscent(), **{**words, "out": out})
    monkeypatch.delattr(os, "posix_fallocate")
    with pytest.raises(ExpungeError, match="could not be written") as error:
        expunge.unlearn(GradientAscent(), **{**words, "out": out}, overwrite=True)
    assert "\n" not in str(error.value)
    assert [p.name for p in out.glob("*partial*")] == []


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="a small file system has to be mounted")
def test_a_disk_that_the_records_or_the_tokenizer_of_a_guard_fill_up_is_a_sentence(
    words: dict[str, Any], small_disk: Path
) -> None:
    out = small_disk / "run"
    del words["training"]
    fill = small_disk / "fill"
    for room, said in ((0, "cannot be written to"), (8192, "artifact could not be written"), (65536, None)):
        fill.write_bytes(bytes(shutil.disk_usage(small_disk).free - room) if room < 65536 else b"")
        if said is None:
            expunge.unlearn(NeuronAdjust(), **{**words, "out": out, "retain": words["forget"]}, resume=True)
            break
        with pytest.raises(ExpungeError, match=said) as error:
            expunge.unlearn(NeuronAdjust(), **{**words, "out": out, "retain": words["forget"]})
        assert "\n" not in str(error.value)
        fill.write_bytes(b"")
    assert (out / "artifact/guard.safetensors").is_file()


def test_a_complete_run_in_a_place_that_is_read_only_is_complete_already(
    words: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expunge.unlearn(GradientAscent(), **words)
    monkeypatch.setattr("expunge.folders.os.access", lambda *_: False)
    assert expunge.unlearn(GradientAscent(), resume=True, **words).stopped == "the run was complete already"
    (words["out"] / "provenance.json").unlink()
    with pytest.raises(ExpungeError, match=r"cannot be written to .read-only"):
        expunge.unlearn(GradientAscent(), resume=True, **words)


def test_a_home_that_the_shell_left_as_a_tilde_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ExpungeError, match="would be a folder named ~ here"):
        expunge.unlearn(GradientAscent(), **{**words, "out": Path("~/run")})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False, capture_output=True
    ).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("lora", [False, True])
def test_every_file_of_an_artifact_follows_the_umask(words: dict[str, Any], lora: bool) -> None:
    before = os.umask(0o022)
    try:
        made = expunge.unlearn(GradientAscent(), **{**words, "training": TRAINING.model_copy(update={"lora": lora})})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in made.folder.rglob("*") if file.is_file()} == {0o644}


@pytest.mark.parametrize("finished", [True, False])
def test_resuming_after_the_forget_set_has_changed_is_refused(
    words: dict[str, Any], forget: Path, finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if not finished:
            fail_to_write(patch)
            with pytest.raises(ExpungeError):
                expunge.unlearn(GradientAscent(), **words)
        else:
            expunge.unlearn(GradientAscent(), **words)
    forget.write_text(json.dumps(OTHER) + "\n")
    with pytest.raises(ExpungeError, match="the forget set holds other rows than when it was begun"):
        expunge.unlearn(GradientAscent(), resume=True, **words)
    forget.write_text(json.dumps(ROW) + "\n")
    expunge.unlearn(GradientAscent(), resume=True, **words)


def test_resuming_after_the_start_model_or_its_tokenizer_has_changed_is_refused(words: dict[str, Any], pico_folder: Path) -> None:
    expunge.unlearn(GradientAscent(), **words)
    weights = words["model"] / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(ExpungeError, match="has other weights than when it was begun"):
        expunge.unlearn(GradientAscent(), resume=True, **words)
    shutil.copy(pico_folder / "model.safetensors", weights)
    (words["model"] / "special_tokens_map.json").write_text("{}")
    with pytest.raises(ExpungeError, match=r"the tokenizer of .* is another than when it was begun"):
        expunge.unlearn(GradientAscent(), resume=True, **words)


@pytest.fixture
def killed(words: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that has its last checkpoint and no artifact."""
    with monkeypatch.context() as patch:
        fail_to_write(patch)
        with pytest.raises(ExpungeError):
            expunge.unlearn(GradientAscent(), **words)
    return Path(words["out"])


def test_settings_that_were_edited_in_the_folder_are_not_mixed_with_those_it_was_begun_with(
    words: dict[str, Any], killed: Path
) -> None:
    text = (killed / "run.yaml").read_text()
    (killed / "run.yaml").write_text(text.replace("steps: 3", "steps: 4"))
    with pytest.raises(ExpungeError, match=r"its run.yaml was edited after it was begun"):
        expunge.unlearn(GradientAscent(), resume=True, **{**words, "training": TRAINING.model_copy(update={"steps": 4})})


def test_a_damaged_checkpoint_is_said(words: dict[str, Any], killed: Path) -> None:
    file = killed / "checkpoint-3/state.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ExpungeError, match=r"checkpoint-3 cannot be read .state.safetensors differs from its checksum"):
        expunge.unlearn(GradientAscent(), resume=True, **words)


def test_a_checkpoint_under_the_name_of_another_step_is_said(words: dict[str, Any], killed: Path) -> None:
    (killed / "checkpoint-3").rename(killed / "checkpoint-2")
    with pytest.raises(ExpungeError, match=r"checkpoint-2 cannot be read .state.json is of step 3"):
        expunge.unlearn(GradientAscent(), resume=True, **words)


def test_steps_without_a_record_of_their_inputs_do_not_go_on(words: dict[str, Any], killed: Path) -> None:
    (killed / "inputs.json").unlink()
    with pytest.raises(ExpungeError, match=r"has lost its inputs.json.* --overwrite"):
        expunge.unlearn(GradientAscent(), resume=True, **words)


def test_going_on_with_another_version_of_expunge_is_said(words: dict[str, Any], killed: Path) -> None:
    inputs = killed / "inputs.json"
    inputs.write_text(json.dumps(json.loads(inputs.read_text()) | {"expunge": "0.0.9"}))
    with pytest.warns(UserWarning, match=r"begun by expunge 0.0.9 and goes on with"):
        expunge.unlearn(GradientAscent(), resume=True, **words)


def test_a_composed_run_does_not_go_on_with_another_forget_set(words: dict[str, Any], forget: Path) -> None:
    method = TaskVectorNegation(keep_expert=True)
    expunge.unlearn(method, **words)
    forget.write_text(json.dumps(OTHER) + "\n")
    with pytest.raises(ExpungeError, match="the forget set holds other rows"):
        expunge.unlearn(TaskVectorNegation(keep_expert=True, scale=0.5), resume=True, **words)


def test_the_files_beside_another_path_are_the_same_run(words: dict[str, Any], tmp_path: Path) -> None:
    """Identity is content: the model moved to another place and named so is another run.yaml; put back, it goes on."""
    expunge.unlearn(GradientAscent(), **words)
    shutil.move(words["model"], tmp_path / "elsewhere")
    shutil.move(tmp_path / "elsewhere", words["model"])
    assert expunge.unlearn(GradientAscent(), resume=True, **words).steps == 0


PLACES = {
    "the model": (lambda w: w["model"], "is an input itself"),
    "inside the model": (lambda w: w["model"] / "runs" / "a", "lies inside the input"),
    "around the model": (lambda w: w["model"].parent, "holds the input"),
    "around the forget file": (lambda w: w["forget"].parent, "holds the input"),
    "the forget file": (lambda w: w["forget"], "is a file"),
    "below the forget file": (lambda w: w["forget"] / "run", "lies below .* which is a file"),
    "a name of 300 letters": (lambda w: w["forget"].parent / ("x" * 300), "cannot be used|has a name of more than"),
    "below a name of 300 letters": (lambda w: w["forget"].parent / ("x" * 300) / "run", "cannot be used|has a name of more than"),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_is_never_in_on_or_around_an_input(name: str, overwrite: bool, words: dict[str, Any]) -> None:
    place, said = PLACES[name]
    before = {path: path.read_bytes() for path in words["forget"].parent.rglob("*") if path.is_file()}
    with pytest.raises(ExpungeError, match=said) as error:
        expunge.unlearn(GradientAscent(), **{**words, "out": place(words)}, overwrite=overwrite)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in words["forget"].parent.rglob("*") if path.is_file()} == before


def test_a_merge_keeps_its_scores_as_a_run_does(tmp_path: Path) -> None:
    for name in ("run", "merged", "plain"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "run.yaml").touch()
    (tmp_path / "merged" / "merge.json").touch()
    for name in ("run", "merged"):
        check_apart(tmp_path / name / "evaluation", [tmp_path / name], also=("evaluation",))
    for name, part in (("merged", "artifact"), ("plain", "evaluation")):
        with pytest.raises(ExpungeError, match="lies inside the input"):
            check_apart(tmp_path / name / part, [tmp_path / name], also=("evaluation",))


def test_overwrite_leaves_a_folder_alone_that_expunge_did_not_make(words: dict[str, Any]) -> None:
    out = words["out"]
    (out / "report").mkdir(parents=True)
    (out / "report" / "thesis.tex").write_text("years of work")
    with pytest.raises(ExpungeError, match="was not made by expunge, so --overwrite leaves it alone"):
        expunge.unlearn(GradientAscent(), overwrite=True, **words)
    assert [file.name for file in out.rglob("*") if file.is_file()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["artifact", "evaluation", "report", "checkpoint-3"])
def test_overwrite_removes_no_file_of_another_hand_inside_a_run(words: dict[str, Any], place: str) -> None:
    out = words["out"]
    expunge.unlearn(GradientAscent(), **words)
    (out / place).mkdir(exist_ok=True)
    (out / place / "notes.txt").write_text("mine")
    with pytest.raises(ExpungeError, match=rf"{place}/notes.txt was not made by expunge"):
        expunge.unlearn(GradientAscent(), overwrite=True, **words)
    (out / place / "notes.txt").rename(out / "notes.txt")
    expunge.unlearn(GradientAscent(), overwrite=True, **words)
    assert (out / "notes.txt").read_text() == "mine"


def test_two_commands_do_not_write_into_one_run(words: dict[str, Any]) -> None:
    expunge.unlearn(GradientAscent(), **words)
    with open(words["out"] / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ExpungeError, match="another command of expunge is writing into"):
            expunge.unlearn(GradientAscent(), overwrite=True, **words)
    expunge.unlearn(GradientAscent(), overwrite=True, **words)
    assert not (words["out"] / ".lock").exists()


def test_an_adapter_made_with_a_relative_model_loads_from_anywhere_and_with_another_base(
    words: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    lora = TRAINING.model_copy(update={"lora": True})
    expunge.unlearn(GradientAscent(), **{**words, "model": "model", "out": "run", "training": lora})
    monkeypatch.chdir(tmp_path / "elsewhere")
    expected = dict(expunge.load(tmp_path / "run")[0].named_parameters())
    config = json.loads((tmp_path / "run/artifact/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "model")
    shutil.move(tmp_path / "model", tmp_path / "moved")
    with pytest.raises(ExpungeError, match=r"is not there any more; put it .* back there, or say where it is with --base"):
        expunge.load(tmp_path / "run")
    found = dict(expunge.load(tmp_path / "run", base=str(tmp_path / "moved"))[0].named_parameters())
    assert all(parameter.equal(expected[name]) for name, parameter in found.items())
    weights = bytearray((tmp_path / "moved/model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "moved/model.safetensors").write_bytes(weights)
    with pytest.raises(ExpungeError, match="was made for a base model with hash"):
        expunge.load(tmp_path / "run", base=str(tmp_path / "moved"))


def test_a_run_and_its_model_that_were_moved_together_find_each_other(words: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    shutil.move(words["model"], tmp_path / "project/model")
    lora = TRAINING.model_copy(update={"lora": True})
    place = {"model": tmp_path / "project/model", "out": tmp_path / "project/run", "training": lora}
    expunge.unlearn(GradientAscent(), **{**words, **place})
    shutil.move(tmp_path / "project", tmp_path / "archive")
    model, _ = expunge.load(tmp_path / "archive/run")
    assert Path(causal_model(model).config.name_or_path) == tmp_path / "archive/model"


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_flipped_byte_of_an_artifact_is_said_when_it_is_loaded(words: dict[str, Any], file: str) -> None:
    made = expunge.unlearn(GradientAscent(), **words)
    content = bytearray((made.artifact / file).read_bytes())
    content[-3] ^= 1
    (made.artifact / file).write_bytes(content)
    with pytest.raises(ExpungeError, match=r"differs from its checksum in expunge\.json"):
        expunge.load(made.folder)


def test_a_file_that_was_laid_into_an_artifact_is_said(words: dict[str, Any]) -> None:
    made = expunge.unlearn(GradientAscent(), **words)
    (made.artifact / "adapter_config.json").write_text("{}")
    with pytest.raises(ExpungeError, match=r"is not listed in expunge\.json and would change what is loaded"):
        expunge.load(made.folder)


def test_an_unfinished_run_says_what_it_is_and_how_it_goes_on(words: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail_to_write(patch)
        with pytest.raises(ExpungeError):
            expunge.unlearn(GradientAscent(), **words)
    said = rf"is an unfinished run \(gradient_ascent, 3 steps done\); go on with: expunge unlearn --resume --out {words['out']}"
    for ask in (expunge.load, expunge.verify, lambda out: expunge.unlearn(GradientAscent(), **words)):
        with pytest.raises(ExpungeError, match=said):
            ask(words["out"])


def test_a_claim_that_was_edited_does_not_survive(words: dict[str, Any]) -> None:
    made = expunge.unlearn(GradientAscent(), **words)
    path = made.artifact / "expunge.json"
    manifest = json.loads(path.read_text())
    assert manifest["claim"] == "not yet shown"
    assert "**Claim: not yet shown.**" in (made.artifact / "README.md").read_text()
    path.write_text(json.dumps(manifest | {"claim": "L3"}))
    with pytest.raises(ExpungeError, match="claims L3 of an artifact of kind weights; it was changed by hand"):
        expunge.verify(made.folder)


def test_neither_the_kind_nor_the_card_can_be_edited_into_another_claim(words: dict[str, Any]) -> None:
    made = expunge.unlearn(GradientAscent(), **words)
    path, card = made.artifact / "expunge.json", made.artifact / "README.md"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"kind": "guard", "claim": "L0"}))
    with pytest.raises(ExpungeError, match=r"does not hold what its expunge\.json says, an artifact of kind guard"):
        expunge.verify(made.folder)
    card.write_text(card.read_text().replace("not yet shown", "L3 exact"))
    path.write_text(json.dumps(manifest | {"files": manifest["files"] | {"README.md": file_hash(card)}}))
    with pytest.raises(ExpungeError, match="makes another claim than expunge wrote"):
        expunge.verify(made.folder)


def test_room_for_the_last_checkpoint_is_held_while_steps_are_done_and_given_back(
    words: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.training import checkpoints, loop

    held, step = [], loop._step

    def seen(*given: Any) -> Any:
        held.append((Path(words["out"]) / RESERVED).stat().st_size)
        return step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", seen)
        made = expunge.unlearn(GradientAscent(), **words)
    weights = sum(t.numel() * t.element_size() for t in load_file(made.artifact / "model.safetensors").values())
    assert held == [weights] * 3
    assert not (made.folder / RESERVED).exists()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "posix_fallocate", full)
    with pytest.raises(ExpungeError, match="no room for the last checkpoint"):
        expunge.unlearn(GradientAscent(), **words, overwrite=True)
    assert not (made.folder / RESERVED).exists()


def test_another_end_token_or_tokenizer_of_the_base_is_another_model_for_its_scores(
    words: dict[str, Any], tmp_path: Path
) -> None:
    lora = TRAINING.model_copy(update={"lora": True})
    expunge.unlearn(GradientAscent(), **{**words, "training": lora})
    places = [words["model"], words["out"]]
    before = [open_model(place).fingerprint() for place in places]
    assert [open_model(place).fingerprint() for place in places] == before
    generation = Path(words["model"]) / "generation_config.json"
    generation.write_text(json.dumps(json.loads(generation.read_text()) | {"eos_token_id": [2, 7]}))
    assert all(open_model(place).fingerprint() != known for place, known in zip(places, before, strict=True))
