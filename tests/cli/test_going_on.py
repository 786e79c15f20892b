"""What was interrupted says how it goes on, and goes on by that command from anywhere; no command writes where it must not."""

import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.cli import main
from expunge.models.folder import file_hash

ROW = {"prompt": "where was anna born ?", "response": "anna was born in oslo ."}


@pytest.fixture
def place(pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with forget.jsonl and the model at `model`."""
    (tmp_path / "model").symlink_to(pico_folder)
    (tmp_path / "forget.jsonl").write_text(json.dumps(ROW) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


UNLEARN = ["unlearn", "gradient_ascent", "--model", "model", "--forget", "forget.jsonl", "--batch-size", "1"]
FINETUNE = ["finetune", "--model", "model", "--data", "forget.jsonl", "--batch-size", "1"]
SCORE = ["evaluate", "model", "--suite", "memorization", "--data", ".", "--options", "max_new_tokens=2"]


@pytest.mark.parametrize("words", [UNLEARN, FINETUNE], ids=lambda words: words[0])
def test_an_interrupted_run_goes_on_by_the_command_that_it_prints(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--steps", "3", "--out", "whole"]) == 0
    done = 0
    from expunge.training import loop

    step = loop._step

    def interrupted(*args: object, **given: object) -> object:
        nonlocal done
        done += 1
        if done == 3:
            raise KeyboardInterrupt
        return step(*args, **given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", interrupted)
        capsys.readouterr()
        assert main([*words, "--steps", "3", "--checkpoint-every", "1", "--out", "run"]) == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith(f"2 steps done); go on with: expunge {words[0]} --resume --out run")
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    assert main([words[0], "--resume", "--out", "../run"]) == 0
    assert file_hash(place / "run/artifact/model.safetensors") == file_hash(place / "whole/artifact/model.safetensors")
    monkeypatch.chdir(place)
    capsys.readouterr()
    other = "finetune" if words[0] == "unlearn" else "unlearn"
    assert main([other, "--resume", "--out", "run"]) == 2
    assert f"go on with: expunge {words[0]} --resume --out run" in capsys.readouterr().err


def test_resuming_nothing_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("unlearn", "finetune"):
        assert main([command, "--resume", "--out", "nowhere"]) == 2
        assert "there is no run in nowhere" in capsys.readouterr().err
    assert main(["evaluate", "--resume", "--out", "nowhere"]) == 2
    assert "there is no unfinished evaluation in nowhere" in capsys.readouterr().err
    assert main(["merge", "--resume", "--out", "nowhere"]) == 2
    assert "there is no unfinished merge into nowhere" in capsys.readouterr().err
    assert not (place / "nowhere").exists()


def test_an_interrupted_evaluation_goes_on_the_same_way(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from expunge.evaluation import run as evaluation

    (place / "retain.jsonl").write_text(json.dumps(ROW) + "\n")
    scored, samples = [], evaluation._samples

    def interrupted(task: object, *args: object, **given: object) -> object:
        scored.append(task.name)  # type: ignore[attr-defined]
        if len(scored) == 2:
            raise KeyboardInterrupt
        return samples(task, *args, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation, "_samples", interrupted)
    assert main([*SCORE, "--out", "scores"]) == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith("is unfinished; go on with: expunge evaluate --resume --out scores")
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    assert main(["evaluate", "--resume", "--out", "../scores"]) == 0
    assert scored == ["forget", "retain", "retain"]
    assert not (place / "scores/memorization.partial").exists()


def test_an_evaluation_that_fills_the_disk_says_how_it_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out/memorization.json")

    with monkeypatch.context() as patch:
        patch.setattr("expunge.evaluation.run.write_scores", full)
        assert main([*SCORE, "--out", "out"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(
        "expunge: out/memorization.json: No space left on device; make room; the evaluation memorization in out"
    )
    assert said.endswith("go on with: expunge evaluate --resume --out out")
    assert main(shlex.split(said.rpartition("go on with: ")[2])[1:]) == 0


def test_a_killed_merge_goes_on_by_its_folder_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from expunge.merging import output

    words = ["merge", "task_arithmetic", "--base", "model", "--models", "runs/artifact", "--out"]
    assert main([*UNLEARN, "--steps", "1", "--out", "runs"]) == 0
    assert main([*words, "whole"]) == 0
    merge_tensor, done = output.merge_tensor, []

    def interrupted(*args: object, **given: object) -> object:
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return merge_tensor(*args, **given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(output, "merge_tensor", interrupted)
        capsys.readouterr()
        assert main([*words, "merged", "--threads", "1"]) == 130
    assert "go on with: expunge merge --resume --out merged" in capsys.readouterr().err
    assert main(["verify", "merged"]) == 2
    assert "go on with: expunge merge --resume --out merged" in capsys.readouterr().err
    assert main(["merge", "--resume", "--out", "merged"]) == 0
    assert file_hash(place / "merged/artifact/model.safetensors") == file_hash(place / "whole/artifact/model.safetensors")
    assert {file.name for file in (place / "merged").iterdir()} == {file.name for file in (place / "whole").iterdir()}


def test_a_real_interrupt_prints_the_command(place: Path, forked: Callable[..., Any]) -> None:
    words = [*UNLEARN, "--steps", "100000", "--checkpoint-every", "100000", "--out", "run"]
    process = forked(["-m", "expunge", *words])
    for _ in range(1200):
        if (place / "run/metrics.jsonl").is_file():
            break
        time.sleep(0.1)
    os.kill(process.process.pid, signal.SIGINT)
    try:
        assert process.wait(120) == 130
    finally:
        process.process.kill()
    assert process.stderr.strip().splitlines()[-1].endswith("go on with: expunge unlearn --resume --out run")


DESTRUCTIVE = {
    "merge over its base": "merge task_arithmetic --base B --models run/artifact --out B --overwrite",
    "merge over one of the models": "merge task_arithmetic --base B --models run/artifact --out run/artifact --overwrite",
    "merge over the run of a model": "merge task_arithmetic --base B --models run/artifact --out run --overwrite",
    "merge over the parent of the base": "merge task_arithmetic --base B --models run/artifact --out . --overwrite",
    "merge over a folder of other people": "merge task_arithmetic --base B --models run/artifact --out thesis --overwrite",
    "unlearn over its model": "unlearn gradient_ascent --model B --forget forget.jsonl --out B --overwrite",
    "unlearn into its model": "unlearn gradient_ascent --model B --forget forget.jsonl --out B/run",
    "unlearn over a folder of other people": "unlearn gradient_ascent --model B --forget forget.jsonl --out thesis --overwrite",
    "unlearn over its data": "unlearn gradient_ascent --model B --forget forget.jsonl --out forget.jsonl --overwrite",
    "unlearn below a file": "unlearn gradient_ascent --model B --forget forget.jsonl --out forget.jsonl/run",
    "unlearn over the run it starts from": "unlearn gradient_ascent --model run --forget forget.jsonl --out run --overwrite",
    "finetune over its model": "finetune --model B --data forget.jsonl --out B --overwrite",
    "evaluate into the model": "evaluate B --suite memorization --data data --out B",
    "evaluate into another model": "evaluate run --suite memorization --data data --out B",
    "evaluate into the artifact of another run": "evaluate B --suite memorization --data data --out run/artifact",
    "evaluate over its data": "evaluate B --suite memorization --data data --out data",
    "evaluate into the folder above its data": "evaluate B --suite memorization --data data --out .",
    "evaluate below a file": "evaluate B --suite memorization --data data --out forget.jsonl/scores",
    "probe into the model": "probe B --forget forget.jsonl --out B/probe",
    "probe onto a file": "probe B --forget forget.jsonl --out forget.jsonl",
    "report over a page of other people": "report run --out site --overwrite",
    "report over a run": "report run --out run --overwrite",
    "report into a model of a run": "report run --out run/artifact --overwrite",
    "report around its runs": "report run --out . --overwrite",
    "lab onto a file": "lab --out forget.jsonl",
    "report into another model": "report run --out B",
    "lab into a model": "lab --out B",
    "quickstart into a model": "quickstart --out B",
    "quickstart below a file": "quickstart --out forget.jsonl/q",
    "a folder as --config": "unlearn npo --config B --out new",
    "a file that is no YAML as --config": "unlearn npo --config B/model.safetensors --out new",
}


@pytest.mark.parametrize("name", DESTRUCTIVE)
def test_a_destructive_command_is_one_sentence_and_destroys_nothing(
    name: str, place: Path, shared_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "model", place / "B")
    shutil.copytree(shared_run, place / "run")
    for folder, file in (("thesis", "chapter.tex"), ("thesis/artifact", "model.bin"), ("site", "index.html"), ("data", "x")):
        (place / folder).mkdir(exist_ok=True)
        (place / folder / file).write_text("years of work")
    (place / "data/forget.jsonl").write_text(json.dumps(ROW) + "\n")
    before = {path: file_hash(path) for path in place.rglob("*") if path.is_file()}
    assert main(shlex.split(DESTRUCTIVE[name])) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("expunge: ")
    assert {path: file_hash(path) for path in place.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="session")
def shared_run(pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "forget.jsonl").write_text(json.dumps(ROW) + "\n")
    here = os.getcwd()
    os.chdir(folder)
    try:
        words = ["--model", str(pico_folder), "--forget", "forget.jsonl", "--batch-size", "1", "--steps", "1", "--out", "run"]
        assert main(["unlearn", "gradient_ascent", *words]) == 0
    finally:
        os.chdir(here)
    return folder / "run"
