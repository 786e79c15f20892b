"""The README's TOFU section with local folders: a real pretrained Llama (260 k parameters) and the real TOFU files."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from expunge.cli import main
from expunge.records import read_evaluation

pytestmark = [pytest.mark.real, pytest.mark.slow]

KEPT = 40
"""Rows of TOFU's retain set that the small model learns beside the forty to forget."""
ASKED = 40
"""Rows of each task that are scored: all that are to be forgotten, and as many of the others."""


@pytest.fixture(scope="module")
def work(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tunes the model that knows everything and the retain-only model, unlearns twice, scores all four, reports."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("tofu")
    tofu, model = data_root / "tofu", str(data_root / "stories260k")
    kept = (tofu / "retain_perturbed.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:KEPT]
    (out / "retain.jsonl").write_text("".join(kept), encoding="utf-8")
    forget, retain = str(tofu / "forget01.jsonl"), str(out / "retain.jsonl")
    learn = ["--learning-rate", "3e-3", "--batch-size", "16", "--schedule", "cosine", "--weight-decay", "0"]
    expunge("finetune", "--model", model, "--data", forget, retain, *learn, "--epochs", "24", "--out", str(out / "original"))
    expunge("finetune", "--model", model, "--data", retain, *learn, "--epochs", "24", "--out", str(out / "retain-only"))
    score = ["--suite", "tofu", "--data", str(tofu), "--forget", "forget01", "--limit", str(ASKED)]
    expunge("evaluate", str(out / "retain-only"), *score)
    expunge("evaluate", str(out / "original"), *score, "--retain-scores", str(out / "retain-only"))
    for method in ("npo", "gradient_difference"):
        data = ["--model", str(out / "original"), "--forget", forget, "--retain", retain, "--out", str(out / method)]
        expunge("unlearn", method, *data, *SETTINGS[method])
        expunge("evaluate", str(out / method), *score, "--retain-scores", str(out / "retain-only"))
    runs = [str(out / m) for m in SETTINGS]
    expunge(
        "report", *runs, "--original", str(out / "original"), "--gold", str(out / "retain-only"), "--out", str(out / "report")
    )
    torch.set_num_threads(threads)
    return out


SETTINGS = {
    "npo": ["--learning-rate", "1e-3", "--epochs", "20", "--batch-size", "16", "--retain-weight", "5"],
    "gradient_difference": ["--learning-rate", "8e-4", "--epochs", "10", "--batch-size", "16", "--retain-weight", "5"],
}


def expunge(*words: str) -> None:
    assert main(words) == 0


def value(work: Path, run: str, task: str, metric: str) -> float:
    score = read_evaluation(work / run / "evaluation" / "tofu.json").get(task, metric)
    assert score is not None
    assert score.value is not None, score.unscored
    return score.value


def test_the_original_knows_what_it_was_taught_and_the_retain_model_does_not(work: Path) -> None:
    assert value(work, "original", "forget", "extraction_strength") > 0.8
    assert value(work, "original", "retain", "extraction_strength") > 0.8
    assert value(work, "retain-only", "forget", "extraction_strength") < 0.1
    assert value(work, "retain-only", "retain", "extraction_strength") > 0.8


def test_greedy_answers_agree_with_what_is_memorized(work: Path) -> None:
    assert value(work, "original", "forget", "rouge_l_recall") > 0.8
    assert value(work, "retain-only", "forget", "rouge_l_recall") < 0.5


@pytest.mark.parametrize("method", SETTINGS)
def test_unlearning_forgets_more_than_it_loses(work: Path, method: str) -> None:
    lost = {task: value(work, "original", task, "extraction_strength") - value(work, method, task, "extraction_strength")
            for task in ("forget", "retain")}  # fmt: skip
    assert value(work, method, "forget", "extraction_strength") < 0.2
    assert lost["forget"] > lost["retain"] + 0.3


def test_forget_quality_is_a_p_value_against_the_retain_model(work: Path) -> None:
    for run in ("original", *SETTINGS):
        assert 0 <= value(work, run, "suite", "forget_quality") <= 1
    assert value(work, "original", "suite", "forget_quality") < 0.05


def test_the_report_shows_all_four_models(work: Path) -> None:
    page = (work / "report/index.html").read_text(encoding="utf-8")
    models = json.loads((work / "report/report.json").read_text())
    assert all(name in page for name in ("original", "gold", *SETTINGS))
    assert "Basil Mahfouz" not in page
    print((work / "report/report.md").read_text())
    assert models
    shutil.rmtree(work / "report")
