"""The budget of disruption: what is measured, where a run ends, and that it ends there with the same bytes after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import expunge
from expunge import ExpungeError, Training
from expunge.data.neutral import neutral_texts
from expunge.methods import GradientAscent
from expunge.spec import Run, build
from tests.training.test_hardening import digest
from tests.training.test_loop import data as data

TEXTS = ["the red cat and the blue dog", "one two three four five six seven eight", "what is the color of the river"]
QUICK = Training(steps=12, batch_size=4, learning_rate=3e-3, stop_every=2, checkpoint_every=2, schedule="constant")


@pytest.fixture
def neutral(tmp_path: Path) -> Path:
    file = tmp_path / "neutral.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


def settings(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "provenance.json").read_text())["settings"]
    return found


def execute(pico: Path, data: dict[str, Path], neutral: Path, out: Path, training: Training, **more: Any) -> Any:
    from expunge.run import execute as run_it

    said = {"model": str(pico), "forget": str(data["forget"]), "neutral": str(neutral), "method": {"name": "gradient_ascent"}}
    return run_it(build(Run, {**said, "training": training.model_dump()}, "test"), out, quiet=True, **more)


def test_a_run_ends_at_its_budget_which_is_the_mean_divergence_from_the_start(
    pico_folder: Path, data: dict[str, Path], neutral: Path, tmp_path: Path
) -> None:
    free = execute(pico_folder, data, neutral, tmp_path / "free", QUICK)
    spent = settings(tmp_path / "free")["disruption_kl"]
    budget = spent / 4
    held = execute(pico_folder, data, neutral, tmp_path / "held", QUICK.model_copy(update={"disruption_budget": budget}))
    assert free.stopped is None
    assert "disruption budget" in held.stopped
    found = settings(tmp_path / "held")
    assert found["disruption_budget"] == budget
    assert 0.9 * budget < found["disruption_kl"] <= budget * 1.001
    start = AutoModelForCausalLM.from_pretrained(pico_folder)
    model, tokenizer = expunge.load(tmp_path / "held")
    total, count = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            before, after = (m(ids).logits[0, :-1].log_softmax(-1) for m in (start, model))
        total += float((before.exp() * (before - after)).sum())
        count += ids.shape[1] - 1
    assert found["disruption_kl"] == pytest.approx(total / count, rel=0.01)


def test_a_killed_run_ends_at_the_same_weights(
    pico_folder: Path, data: dict[str, Path], neutral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = QUICK.model_copy(update={"disruption_budget": 0.05, "checkpoint_every": 3, "learning_rate": 1.3e-3})
    whole = execute(pico_folder, data, neutral, tmp_path / "whole", training)
    assert 4 < whole.steps < 12  # else the kill below would test nothing

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("expunge.training.way.Way.place", dies)
        with pytest.raises(KeyboardInterrupt):
            execute(pico_folder, data, neutral, tmp_path / "killed", training)
    execute(pico_folder, data, neutral, tmp_path / "killed", training, resume=True)
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


def test_neutral_text_is_given_or_found_or_missed_by_name(tmp_path: Path, neutral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [row.response for row in neutral_texts([str(neutral)])] == TEXTS
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    with pytest.raises(ExpungeError, match="--neutral FILE, or set EXPUNGE_DATA"):
        neutral_texts()
    (tmp_path / "wikitext2").mkdir()
    lines = [f" = Title {i} = \n" if i % 3 == 0 else f" {' '.join(['word'] * 9)} {i} . " for i in range(300)]
    (tmp_path / "wikitext2/wiki.test.raw").write_text("\n".join(line.rstrip("\n") for line in lines))
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    found = neutral_texts()
    assert len(found) == 64
    assert not any("=" in row.response for row in found)


def test_a_budget_for_a_guard_is_refused() -> None:
    with pytest.raises(ExpungeError, match="measured for methods that train; leave out --disruption-budget"):
        build(Run, {"model": "m", "forget": "f", "method": {"name": "key_space"}, "training": {"disruption_budget": 0.1}}, "test")
    assert GradientAscent().family == "training"
