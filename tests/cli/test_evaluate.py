"""`expunge evaluate` and `expunge suites`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from expunge.cli import main
from expunge.evaluation.metrics import METRICS
from expunge.evaluation.suites import SUITES


@pytest.fixture
def tofu(tmp_path: Path) -> Path:
    folder = tmp_path / "tofu"
    folder.mkdir()
    row = {"question": "where was anna born ?", "answer": "in lima", "perturbed_answer": ["in oslo", "in cairo"]}
    for split in ("forget01", "retain", "real_authors", "world_facts"):
        (folder / f"{split}_perturbed.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_writes_scores_and_samples_and_prints_a_table(
    pico_folder: Path, tofu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(pico_folder), "--suite", "tofu", "--data", str(tofu), "--forget", "forget01"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "real_authors" in printed
    assert "model_utility" in printed
    assert printed.count("fine-tune the start model on the retain split alone") == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["tofu.json", "tofu.samples.jsonl"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_model_is_compared_with_others_and_never_with_itself(
    pico_folder: Path,
    tofu: Path,
    tmp_path: Path,
    model_of: Callable[..., PreTrainedModel],
    pico_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model_of("llama", seed=1).save_pretrained(tmp_path / "other")
    pico_tokenizer.save_pretrained(tmp_path / "other")
    shutil.copytree(pico_folder, tmp_path / "copy")
    words = ["--suite", "tofu", "--data", str(tofu), "--forget", "forget01"]
    assert main(["evaluate", str(pico_folder), *words, "--out", str(tmp_path / "gold")]) == 0
    capsys.readouterr()
    given = ["--retain-scores", str(tmp_path / "gold")]
    assert main(["evaluate", str(tmp_path / "copy"), *words, *given, "--out", str(tmp_path / "out")]) == 2
    assert "the evaluation given as retain_scores is of this very model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["evaluate", str(tmp_path / "other"), *words, *given, "--out", str(tmp_path / "out")]) == 0
    quality = next(s for s in json.loads((tmp_path / "out/tofu.json").read_text())["scores"] if s["metric"] == "forget_quality")
    assert quality["value"] == 1.0  # of one question


def test_suites_whose_options_name_all_files_need_no_folder(
    pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, city in (("forget", "lima"), ("retain", "oslo"), ("holdout", "cairo")):
        row = {"prompt": f"where was anna born ? {city}", "response": f"in {city}"}
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row | {"prompt": f"{row['prompt']} {i}"}) + "\n" for i in "ab"))
    words = ["evaluate", str(pico_folder), "--suite"]
    assert main([*words, "memorization", "--options", "forget=forget.jsonl", "--out", "a"]) == 0
    assert "retain" not in capsys.readouterr().out  # nobody named the file that lies here
    assert main([*words, "memorization", "--options", "forget=forget.jsonl", "retain=retain.jsonl", "--out", "b"]) == 0
    assert "retain" in capsys.readouterr().out
    assert main([*words, "membership", "--options", "forget=forget.jsonl", "holdout=holdout.jsonl", "--out", "c"]) == 0
    capsys.readouterr()
    for suite, option in (("memorization", "retain=retain.jsonl"), ("membership", "forget=forget.jsonl")):
        assert main([*words, suite, "--options", option, "--out", "d"]) == 2
        assert f"the suite {suite} needs its data" in capsys.readouterr().err


def test_a_long_prompt_is_scored_where_the_length_is_raised_as_the_message_says(
    tmp_path: Path,
    model_of: Callable[..., PreTrainedModel],
    pico_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model_of("llama", max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    pico_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "forget.jsonl").write_text(json.dumps({"prompt": "anna " * 1030, "response": "in lima"}) + "\n")
    words = [
        "evaluate",
        str(tmp_path / "model"),
        "--suite",
        "memorization",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    words += ["--options", "max_new_tokens=2"]
    assert main(words) == 2
    assert "max_length 1024; shorten the prompt, or raise --max-length where the model takes more" in capsys.readouterr().err
    assert main([*words, "--max-length", "1100"]) == 0
    scores = json.loads((tmp_path / "out/memorization.json").read_text())["scores"]
    assert all(score["value"] is not None and not score["cut"] for score in scores)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--suite", "tofoo"], "did you mean 'tofu'"),
        (["--suite", "tofu"], "give it with --data"),
        (["--suite", "tofu", "--data", "TOFU", "--forget", "forget02"], "forget01"),
        (["--suite", "lab", "--compat"], "no option --compat"),
        (["--suite", "wmdp", "--options", "style=letter"], "--options style=letter: Input should be 'letters' or 'continuation'"),
        (["--suite", "wmdp", "--data", "TOFU"], "the suite wmdp reads bio-questions.json, chem-questions.json"),
        (["--suite", "lab", "--data", "TOFU"], "expunge lab"),
        (
            ["--suite", "tofu", "--data", "TOFU", "--forget", "forget01", "--dtype", "float8"],
            "Expected one of ('auto', 'float32'",
        ),
        (
            ["--suite", "tofu", "--data", "TOFU", "--forget", "forget01", "--retain-scores", "nowhere"],
            "evaluate the retain model",
        ),
        (["--suite", "tofu", "--data", "TOFU", "--forget", "forget01", "--limit", "0"], "from 1 on"),
        (["--suite", "tofu", "--data", "TOFU"], "forget10_perturbed"),
    ],
)
def test_wrong_input_is_one_sentence_and_nothing_is_written(
    pico_folder: Path, tofu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    words = [str(tofu) if word == "TOFU" else word for word in flags]
    assert main(["evaluate", str(pico_folder), "--out", str(tmp_path / "out"), *words]) == 2
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("expunge:") == 1
    assert not (tmp_path / "out").exists()


def test_several_suites_take_the_options_that_they_have_and_what_is_done_stays(
    pico_folder: Path, tofu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = {"question": "where ?", "choices": ["lima", "oslo", "cairo", "quito"], "answer": 0}
    (tofu / "bio-questions.json").write_text(json.dumps([question]))
    words = ["evaluate", str(pico_folder), "--data", str(tofu), "--out", str(tmp_path / "out"), "--forget", "forget01"]
    both = [*words, "--suite", "tofu,wmdp", "--options", "tasks=bio"]
    assert main([*both, "--allow-code-execution"]) == 2
    assert "the suite tofu, wmdp has no option --allow-code-execution" in capsys.readouterr().err
    assert main([*words, "--suite", "tofu"]) == 0
    assert main(both) == 0
    printed = capsys.readouterr().out
    assert printed.count("exact_memorization") == 2 * 4
    assert "wmdp_bio" in printed
    assert main(both) == 2
    assert "tofu.json exists" in capsys.readouterr().err
    (tmp_path / "out/wmdp.json").unlink()
    assert main([*both, "--limit", "1"]) == 0  # there is one of each
    (tmp_path / "out/wmdp.json").unlink()
    (tofu / "retain_perturbed.jsonl").write_text((tofu / "retain_perturbed.jsonl").read_text() * 2)
    assert main(both) == 2
    assert "of another model, other data or other settings" in capsys.readouterr().err


def test_a_plain_model_needs_a_place_for_its_scores(pico_folder: Path, tofu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(pico_folder), "--suite", "tofu", "--data", str(tofu), "--forget", "forget01"]) == 2
    assert "give --out DIR" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*SUITES, *METRICS])
def test_suites_explains_every_suite_and_metric(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suites", name]) == 0
    assert len(capsys.readouterr().out) > 200
    assert main(["suites"]) == 0
    assert name in capsys.readouterr().out
    assert main(["suites", name + "x"]) == 2
    assert f"did you mean '{name}'" in capsys.readouterr().err
