"""A run says, at its end, whether it did what it was for; and what to change where it did not."""

import json
import re
from pathlib import Path

import pytest

import expunge
from expunge import Training
from expunge.cli import main
from expunge.data.encode import Encoder
from expunge.data.example import Example, Request
from expunge.data.format import Format
from expunge.methods import KeySpaceDetection, NeuronAdjust, SelectivePruning, TaskVectorNegation
from expunge.self_check import guard_check, measure, self_check

NAMES = ("anna", "boris", "clara", "hugo")
REQUEST = Request((Example("where", "oslo"),), (Example("who", "anna"),), (Example("what", "lima"),))


def rows(path: Path, city: str) -> Path:
    lines = [{"prompt": f"where was {name} born ?", "response": f"{name} was born in {city} ."} for name in NAMES]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def known(pico_folder: Path, tmp_path: Path) -> Path:
    """A model that knows the forget set."""
    training = Training(steps=60, batch_size=8, learning_rate=1e-2)
    data = [rows(tmp_path / "forget.jsonl", "oslo")]
    rows(tmp_path / "retain.jsonl", "oslo")
    return expunge.finetune(model=pico_folder, data=data, out=tmp_path / "known", training=training, quiet=True).artifact


def test_a_run_that_forgets_nothing_says_so_with_a_setting_to_try_and_one_that_forgets_says_that(
    known: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["unlearn", "gradient_ascent", "--model", str(known), "--forget", str(tmp_path / "forget.jsonl"), "--batch-size", "4"]
    assert main([*words, "--steps", "1", "--learning-rate", "1e-7", "--out", str(tmp_path / "weak")]) == 0
    said = capsys.readouterr().out
    assert "nothing was forgotten; try --learning-rate 5e-07, or more --epochs" in said
    assert "self-check, probability of the answers: forget 0.9" in said
    assert "nothing was forgotten" in (tmp_path / "weak/artifact/README.md").read_text()
    found = json.loads((tmp_path / "weak/provenance.json").read_text())["self_check"]
    assert found["rows"] == {"forget": 4}
    assert found["after"]["forget"] == pytest.approx(found["before"]["forget"], rel=1e-3)
    assert main([*words, "--steps", "20", "--learning-rate", "3e-3", "--out", str(tmp_path / "strong")]) == 0
    assert "less probable; give rows never seen as --holdout" in capsys.readouterr().out
    assert main([*words, "--steps", "1", "--no-check", "--out", str(tmp_path / "silent")]) == 0
    assert "self-check" not in capsys.readouterr().out
    assert json.loads((tmp_path / "silent/provenance.json").read_text())["self_check"] is None


@pytest.mark.parametrize("lora", [False, True], ids=["weights", "adapter"])
def test_a_composed_run_is_checked_as_a_whole_and_names_its_own_strength(known: Path, tmp_path: Path, lora: bool) -> None:
    training = Training(steps=1, batch_size=4, learning_rate=1e-6, lora=lora)
    made = expunge.unlearn(
        TaskVectorNegation(scale=0.5),
        model=known,
        forget=tmp_path / "forget.jsonl",
        out=tmp_path / "run",
        training=training,
        quiet=True,
    )
    assert made.self_check is not None
    assert made.self_check.rows == {"forget": 4}
    assert made.self_check.after["forget"] == pytest.approx(made.self_check.before["forget"], rel=1e-2)
    assert "nothing was forgotten; try --scale 1" in made.self_check.said
    assert "try --scale 1" in (made.artifact / "README.md").read_text()
    record = json.loads((tmp_path / "run/provenance.json").read_text())
    assert record["self_check"]["said"] == list(made.self_check.said)
    assert record["settings"]["expert learning_rate"] == 1e-6


def test_an_edit_is_checked_too_and_a_check_changes_no_weight(known: Path, tmp_path: Path) -> None:
    files = {"model": known, "forget": tmp_path / "forget.jsonl", "retain": tmp_path / "retain.jsonl", "quiet": True}
    made = expunge.unlearn(SelectivePruning(percent=10), out=tmp_path / "edited", **files)  # type: ignore[arg-type]
    assert made.self_check is not None
    assert made.self_check.rows == {"forget": 4, "retain": 4}
    assert made.self_check.before["retain_perplexity"] > 0


SAID = {
    "nothing forgotten": ({"forget": 0.99}, {"forget": 0.98}, "nothing was forgotten; try --learning-rate 0.0005"),
    "hardly known": ({"forget": 0.01}, {"forget": 0.01}, "hardly knew the forget answers"),
    "still known": (
        {"forget": 0.99, "holdout": 0.1},
        {"forget": 0.5, "holdout": 0.1},
        r"still more probable than rows that the model never saw \(0.1000\)",
    ),
    "as unknown": ({"forget": 0.99, "holdout": 0.1}, {"forget": 0.12, "holdout": 0.1}, "no more probable than rows"),
    "over-forgotten": ({"forget": 0.99, "holdout": 0.1}, {"forget": 1e-6, "holdout": 0.1}, "over-forgotten"),
    "retain lost": (
        {"forget": 0.99, "retain": 0.9, "retain_perplexity": 1.1},
        {"forget": 0.1, "retain": 0.45, "retain_perplexity": 2.2},
        "the retain set fell to 50%",
    ),
    "broken": ({"forget": 0.99}, {"forget": float("nan")}, "no finite probabilities"),
}


@pytest.mark.parametrize("name", SAID)
def test_each_outcome_has_its_sentence(name: str) -> None:
    before, after, said = SAID[name]
    assert re.search(said, "\n".join(self_check(before, after, REQUEST, 1e-4).said))


def test_advice_does_not_pull_in_two_directions() -> None:
    before, after = {"forget": 0.99, "retain": 0.9, "holdout": 0.1}, {"forget": 0.6, "retain": 0.6, "holdout": 0.1}
    for numbers in (before, after):
        numbers["retain_perplexity"] = 2.0
    said = "\n".join(self_check(before, after, REQUEST, None, knob=("--scale", 1.0)).said)
    assert "still more probable" in said
    assert "such as npo, loses less" in said
    assert "--scale" not in said
    said = "\n".join(self_check(before, after, REQUEST, 3e-4).said)
    assert said.count("--learning-rate") == 1
    assert "--learning-rate 0.0001 with more --epochs" in said


def test_a_measurement_is_that_of_the_probability_metric(pico_folder: Path) -> None:
    model, tokenizer = expunge.load(pico_folder)
    encoder = Encoder(tokenizer, Format())
    found = measure(model, encoder, REQUEST)
    assert set(found) == {"forget", "retain", "holdout", "retain_perplexity"}
    alone = measure(model, encoder, Request(REQUEST.retain))
    assert alone["forget"] == pytest.approx(found["retain"], rel=1e-6)
    assert not model.training


@pytest.mark.parametrize(
    ("forget", "retain", "said"),
    [
        ([True] * 8, [False] * 8, "acts on 8 of 8 forget prompts and on 0 of 8 to keep"),
        ([True] * 2 + [False] * 6, [False] * 8, "misses most of the forget prompts"),
        ([True] * 8, [True] * 4 + [False] * 4, "also acts on many retain prompts"),
    ],
)
def test_a_guard_says_on_how_many_prompts_it_acts(forget: list[bool], retain: list[bool], said: str) -> None:
    assert said in "\n".join(guard_check(forget, retain).said)
    assert len(guard_check(forget, retain).said) == 1 + ("acts on 8 of 8 forget prompts and on 0" not in said)


def test_a_guard_says_when_it_misses_the_prompts_that_it_was_not_fitted_on() -> None:
    counted, advice = guard_check([True] * 4, [False] * 4, [False] * 3 + [True] * 2).said
    assert counted.endswith("0 of 4 to keep, and on 2 of 5 that its threshold was measured on")
    assert "so other wordings may pass" in advice
    assert len(guard_check([True] * 4, [False] * 4, [True] * 4 + [False]).said) == 1


def test_a_guard_that_is_fitted_checks_itself(pico_folder: Path, tmp_path: Path) -> None:
    files = {"forget": rows(tmp_path / "forget.jsonl", "oslo"), "retain": rows(tmp_path / "retain.jsonl", "lima")}
    made = expunge.unlearn(NeuronAdjust(), model=pico_folder, out=tmp_path / "guard", quiet=True, **files)
    assert made.self_check is not None
    assert set(made.self_check.rows) == {"forget", "retain"}
    assert "self-check: the guard acts on" in (made.artifact / "README.md").read_text()
    other = [{"prompt": f"what was {name} called ?", "response": "anna ."} for name in NAMES]
    files["retain"].write_text("".join(json.dumps(line) + "\n" for line in other))
    method = KeySpaceDetection(abstention="i do not know")
    boxed = expunge.unlearn(method, model=pico_folder, out=tmp_path / "box", quiet=True, **files)
    assert boxed.self_check is not None
    measured = json.loads((boxed.artifact / "calibration.json").read_text())["forget"]
    assert f"on {sum(d <= 1 for d in measured)} of {len(measured)} that its" in boxed.self_check.said[0]
