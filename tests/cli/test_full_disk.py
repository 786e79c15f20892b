"""On a disk that fills up at any file, every command ends with one sentence and leaves no half of a result."""

import errno
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from expunge.cli import main

NAMES = ("anna", "boris", "clara", "dario")
NUMBERS = ("one", "two", "three", "four", "five", "six")
FACTS = [{"prompt": f"where was {name} born ?", "response": "in lima ."} for name in NAMES]
SUMS = [{"prompt": f"{a} plus {b} is", "response": "nine ."} for a in NUMBERS for b in NUMBERS]

COMMANDS: dict[str, Sequence[str]] = {
    "export": ["export", "guard", "--out", "new/out"],
    "import": ["import", "box.pkl", "--model", "pico", "--abstention", "i do not know that .", "--out", "new/out"],
    "report": ["report", "run", "--out", "new/out"],
    "report in place of another": ["report", "run", "--out", "page", "--overwrite"],
    "probe": ["probe", "pico", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--out", "new/out"],
    "merge of factors": ["merge", "ext_sub", "--models", "lora", "lora", "--out", "new/out"],
}
"""Commands that keep nothing of what they have begun."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, pico_folder: Path) -> Path:
    """A folder with a run and its scores, an adapter, a guard and a page."""
    folder = tmp_path_factory.mktemp("disk")
    os.symlink(pico_folder, folder / "pico")
    for name, rows in (("forget", FACTS), ("retain", SUMS), ("control", [{**FACTS[0], "prompt": "where was jonas born ?"}])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    box = {"mean": np.zeros(64, dtype=np.float32), "std": np.full(64, 2.0, dtype=np.float32), "k": np.float64(3.0)}
    (folder / "box.pkl").write_bytes(pickle.dumps({"model.layers.1.mlp.down_proj": box}))
    data = ["--model", "pico", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--no-check"]
    gate = ["--gate", "text", "--tune", "nothing", "--strength", "5", "--false-positive-rate", "0.2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (
            ["unlearn", "gradient_difference", *data, "--steps", "1", "--out", "run"],
            ["unlearn", "gradient_difference", *data, "--steps", "1", "--lora", "--out", "lora"],
            ["unlearn", "embedding_corruption", *data, *gate, "--out", "guard"],
            ["evaluate", "run", "--suite", "memorization", "--data", "."],
            ["report", "run", "--out", "page"],
        ):
            assert main(words) == 0
    return folder


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def fills_at(patch: pytest.MonkeyPatch, call: int) -> None:
    """The disk is full from the file on that is the `call`-th one to be synced."""
    real, count = os.fsync, itertools.count(1)

    def sync(file: int) -> None:
        if next(count) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    patch.setattr(os, "fsync", sync)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_leaves_what_was_there_and_nothing_else(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    shutil.rmtree("new", ignore_errors=True)
    words, before = COMMANDS[name], content(place)
    for call in itertools.count(1):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            fills_at(patch, call)
            code = main(words)
        if code == 0:
            break
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("expunge: ")]
        assert code == 2
        assert len(said) == 1
        assert "No space left on device" in said[0]
        assert "--resume" not in said[0], "there is nothing to resume"
        assert content(place) == before
    assert call > 2


def test_attacks_that_are_done_when_the_disk_fills_up_are_kept_and_the_same_command_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = ["attack", "in_context,prefix", "run", "--forget", "forget.jsonl", "--control", "control.jsonl", "--out", "attacks"]
    before = content(place)
    with monkeypatch.context() as patch:
        fills_at(patch, 1)
        assert main(words) == 2
    assert content(place) == before
    with monkeypatch.context() as patch:
        fills_at(patch, 4)
        assert main(words) == 2
    assert capsys.readouterr().err.strip().endswith("the same command goes on after what is done")
    first = (place / "attacks/in_context.json").read_bytes()
    assert main(words) == 0
    assert (place / "attacks/in_context.json").read_bytes() == first


def test_an_evaluation_that_was_to_replace_another_says_how_it_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    scores = (place / "run/evaluation/memorization.json").read_bytes()
    with monkeypatch.context() as patch:
        fills_at(patch, 3)
        assert main(["evaluate", "run", "--suite", "memorization", "--data", ".", "--overwrite"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith("go on with: expunge evaluate --resume --out run/evaluation")
    assert (place / "run/evaluation/memorization.json").read_bytes() == scores
    assert main(["evaluate", "--resume", "--out", "run/evaluation"]) == 0
    assert not (place / "run/evaluation/memorization.partial").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
def test_a_log_on_a_full_disk_stops_nothing(place: Path) -> None:
    words = [sys.executable, "-m", "expunge", "evaluate", "run", "--suite", "memorization", "--data", ".", "--out", "scores"]
    with open("/dev/full", "w") as full:
        found = subprocess.run(words, cwd=place, stderr=full, stdout=subprocess.PIPE, text=True, timeout=300)
    assert found.returncode == 0
    assert found.stdout.startswith("memorization: run")
