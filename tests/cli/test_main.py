"""The command line as a user meets it."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.cli import COLLECTED, COMMANDS, main
from expunge.methods import METHODS, UNLEARNING


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "expunge", *words], capture_output=True, text=True, check=False)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert main([name, "--help"]) == 0
    assert len(capsys.readouterr().out) > 100


@pytest.mark.parametrize("name", UNLEARNING)
def test_every_field_of_a_method_is_a_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["unlearn", name, "--help"])
    assert leaving.value.code in (0, None)
    printed = capsys.readouterr().out
    for field in METHODS[name].model_fields:
        assert field in ("name", "retain_loss") or f"--{field.replace('_', '-')}" in printed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["unlern"], "did you mean 'unlearn'"),
        (["unlearn", "nop"], "did you mean 'npo'"),
        (["unlearn"], "needs a method"),
        (["unlearn", "npo", "--model", "m", "--forget", "f", "--out", "o", "--btea", "1"], "did you mean '--beta'"),
        (["unlearn", "npo", "--model", "m", "--forget", "f"], "--out"),
        (["unlearn", "npo", "--model", "m", "--forget", "f", "--out", "o", "--beta", "x"], "--beta"),
        (["unlearn", "npo", "--model", "m", "--forget", "f", "--out", "o", "--beta", "-1"], "greater than 0"),
        (["unlearn", "npo", "--config", "nowhere.yaml", "--out", "o"], "nowhere.yaml"),
        (["unlearn", "npo", "--model", "m", "--forget", "f", "--out", "o", "--beta", "-1"], "npo: --beta: Input should be"),
        (
            ["unlearn", "key_space", "--model", "m", "--forget", "f", "--out", "o", "--radius", "1", "--alpha", "2"],
            "key_space: radius and alpha both say how wide the box is; give one of them; `expunge",
        ),
        (["unlearn", "npo", "--model", "m", "--forget", "f", "--out", "o", "--epochs", "inf"], "--epochs: has to be finite"),
        (["verify", "nowhere"], "nowhere"),
        (["methods", "nop"], "did you mean 'npo'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("expunge: ")
    assert not list(tmp_path.iterdir())


def test_unlearn_from_flags_then_from_its_own_run_yaml(pico_folder: Path, tmp_path: Path) -> None:
    forget = tmp_path / "forget.jsonl"
    forget.write_text(json.dumps({"prompt": "where was anna born ?", "response": "anna was born in oslo ."}) + "\n")
    words = ["unlearn", "npo", "--model", str(pico_folder), "--forget", str(forget), "--retain-loss", "none", "--beta", "0.2"]
    assert main([*words, "--steps", "2", "--batch-size", "1", "--out", str(tmp_path / "a")]) == 0
    assert main(["unlearn", "--config", str(tmp_path / "a/run.yaml"), "--out", str(tmp_path / "b")]) == 0
    assert (tmp_path / "a/run.yaml").read_bytes() == (tmp_path / "b/run.yaml").read_bytes()
    assert main(["unlearn", "--config", str(tmp_path / "a/run.yaml"), "--out", str(tmp_path / "c"), "--beta", "0.5"]) == 0
    assert "beta: 0.5" in (tmp_path / "c/run.yaml").read_text()
    assert main(["verify", str(tmp_path / "a")]) == 0


def test_epochs_on_the_command_line_outrank_the_steps_of_a_file(pico_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "where was anna born ?", "response": "anna was born in oslo ."}) + "\n")
    words = ["finetune", "--model", str(pico_folder), "--data", str(data), "--steps", "1", "--learning-rate", "1e-3"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    again = ["finetune", "--config", str(tmp_path / "one/run.yaml"), "--out", str(tmp_path / "two"), "--epochs", "3"]
    assert main(again) == 0
    assert len((tmp_path / "two/metrics.jsonl").read_text().splitlines()) == 3


def test_what_is_left_open_is_called_auto_and_never_none(pico_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["unlearn", "rmu", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for flag in ("--learning-rate", "--epochs", "--steps", "--layer"):
        assert re.search(rf"{flag} \S*auto\S* ", printed), flag
    assert main(["unlearn", "npo", "--model", "m", "--forget", "f", "--out", "o", "--learning-rate", "soon"]) == 2
    assert "--learning-rate" in capsys.readouterr().err


def test_forgetting_until_a_probability_is_asked_for_on_the_command_line(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "where was anna born ?", "response": "anna was born in oslo ."}) + "\n")
    words = ["unlearn", "gradient_ascent", "--model", str(pico_folder), "--forget", str(data), "--out"]
    assert main([*words, str(tmp_path / "run"), "--until", "0.9"]) == 0
    assert "are no more probable than was asked for (0.9)" in capsys.readouterr().out
    assert "until: 0.9" in (tmp_path / "run/run.yaml").read_text()
    assert main([*words, str(tmp_path / "none"), "--until", "never-seen"]) == 2
    assert "give them as --holdout" in capsys.readouterr().err
    for flag, wrong in (("--until", "7"), ("--until", "often"), ("--learning-rate", "-1"), ("--steps", "0")):
        assert main([*words, str(tmp_path / "none"), flag, wrong]) == 2
        said = capsys.readouterr().err
        assert flag in said
        assert "constrained" not in said
    assert not (tmp_path / "none").exists()


def test_verify_says_what_the_records_support(pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "where was anna born ?", "response": "anna was born in oslo ."}) + "\n")
    words = ["unlearn", "gradient_ascent", "--model", str(pico_folder), "--forget", str(data), "--steps", "1"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert "not yet shown (no suite has scored what was to be forgotten)" in capsys.readouterr().out


def test_verify_finds_a_changed_file(pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "where was anna born ?", "response": "anna was born in oslo ."}) + "\n")
    words = ["finetune", "--model", str(pico_folder), "--data", str(data), "--steps", "1", "--batch-size", "1"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    weights = tmp_path / "run/artifact/model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert main(["verify", str(tmp_path / "run")]) == 2
    assert "differs from its checksum" in capsys.readouterr().err


def test_the_module_is_the_command() -> None:
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("expunge ")


def test_a_log_holds_no_bars_of_other_libraries(pico_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"where was {p} born ?", "response": f"{p} was born in oslo ."} for p in ("anna", "boris")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", str(pico_folder), "--data", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "run"), "--steps", "1"]
    done = run("finetune", *words)
    assert done.returncode == 0, done.stderr
    assert "finetune: 1/1" in done.stderr
    assert "%|" not in done.stderr


def test_a_reader_that_has_seen_enough_sees_no_traceback() -> None:
    with subprocess.Popen([sys.executable, "-m", "expunge", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_terminal_that_lacks_characters_gets_them_escaped_and_a_closed_one_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with open(tmp_path / "out", "w", encoding="ascii") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", out)
        assert main(["verify", "Zoë"]) == 2
    assert (tmp_path / "out").read_text().startswith("expunge: Zo\\xeb holds no expunge.json")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", None)
        assert main(["--help"]) == 0
        assert main(["verify", "nowhere"]) == 2


def test_only_a_process_of_its_own_looks_for_garbage_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, ...]] = []
    monkeypatch.setattr("gc.set_threshold", lambda *counts: said.append(counts))
    monkeypatch.setattr("sys.argv", ["expunge", "--version"])
    assert main(["--version"]) == 0
    assert said == []
    assert main() == 0
    assert [counts[0] for counts in said] == [COLLECTED]
