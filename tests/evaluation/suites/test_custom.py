"""The custom suite: a YAML file over one's own data, and a sentence for each thing that can be wrong with it."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.errors import ExpungeError
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites import Custom, built
from expunge.records import read_samples

NAMES = ("anna", "boris", "clara", "dario", "elena")
SUITE = {
    "tasks": [
        {
            "name": "forget", "data": "forget.jsonl", "role": "forget",
            "metrics": ["probability", "truth_ratio", "mia_loss", "mia_min_k"],
        },
        {"name": "holdout", "data": "holdout.jsonl", "metrics": ["mia_min_k", "mia_loss"]},
        {
            "name": "retain", "data": "asked.jsonl", "role": "retain", "max_new_tokens": 4, "secret": False,
            "columns": {"prompt": "ask", "response": "say"},
            "metrics": ["probability", {"name": "rouge", "kind": "rouge1"}, {"name": "harmful_rate", "words": ["lima"]}],
        },
    ],
    "membership": {"forget": "forget", "holdout": "holdout"},
    "model_utility": [{"task": "retain", "metric": "probability"}, {"task": "retain", "metric": "rouge"}],
    "forget_quality": "forget",
}  # fmt: skip
TASK = SUITE["tasks"][0]


def lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    wrong = ["in paris", "in oslo"]
    lines(tmp_path / "forget.jsonl", [{"prompt": f"where is {n} ?", "response": "in lima", "perturbed": wrong} for n in NAMES])
    lines(tmp_path / "holdout.jsonl", [{"prompt": f"where is {n} ?", "response": "in tokyo"} for n in NAMES])
    lines(tmp_path / "asked.jsonl", [{"ask": f"who is {n} ?", "say": "a nurse"} for n in NAMES])
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SUITE))
    return tmp_path / "mine.yaml"


def test_a_file_of_tasks_is_scored_with_all_that_it_asks_for(
    suite: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluate(pico_llama, pico_tokenizer, suite="custom", data=suite, out=out, quiet=True)
    spec = Custom(retain_scores=out, reference_scores=out)
    evaluation = evaluate(pico_llama, pico_tokenizer, suite=spec, data=suite, quiet=True)
    assert evaluation.suite == "mine"
    found = {(score.task, score.metric): score.value for score in evaluation.scores}
    assert all(value is not None for value in found.values())
    assert found.keys() >= {
        ("retain", "rouge"),
        ("retain", "harmful_rate"),
        ("forget", "probability"),
        ("suite", "model_utility"),
    }
    assert ("forget", "mia_loss") not in found
    assert found["suite", "forget_quality"] == 1.0
    assert found["suite", "privleak"] == found["suite", "mia_loss_relative_difference"] == 0.0
    assert found["suite", "mia_reference"] == 0.5
    samples = list(read_samples(out / "mine.samples.jsonl"))
    assert any(sample.text for sample in samples if sample.task == "retain")
    assert not any(sample.text for sample in samples if sample.task == "forget")


def changed(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(SUITE | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, r"mine.yaml, tasks: .*at least 1"),
        (
            {"tasks": [TASK | {"metrics": ["probabilty"]}]},
            r"tasks.0.metrics: there is no metric 'probabilty' \(did you mean 'probability'",
        ),
        ({"tasks": [TASK | {"metrics": ["rouge", {"name": "rouge", "kind": "rouge2"}]}]}, "the metric rouge is there twice"),
        ({"tasks": [TASK | {"metrics": [{"name": "rouge", "kind": "rouge9"}]}]}, "tasks.0.metrics.0.rouge.kind"),
        ({"tasks": [TASK | {"metrics": ["harmful_rate"]}]}, "either `words` or a `judge`"),
        ({"tasks": [TASK] * 2}, "two tasks 'forget'"),
        ({"tasks": [TASK | {"roll": "forget"}]}, "tasks.0.roll"),
        ({"membership": {"forget": "forget", "holdout": "holdut"}}, r"no task 'holdut' \(did you mean 'holdout'"),
        ({"membership": {"forget": "forget", "holdout": "retain"}}, "needs a metric such as mia_min_k in both"),
        ({"forget_quality": "holdout"}, "the task holdout has no metric truth_ratio"),
        ({"name": "tofu"}, "one of expunge's own"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(suite: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ExpungeError, match=message):
        built(Custom(), changed(suite, **changes))


def test_missing_and_unreadable_files_are_sentences(suite: Path, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match=r"no file .*other.yaml; the suite custom needs a YAML file"):
        Custom().build(tmp_path / "other.yaml")
    suite.write_text("tasks: [")
    with pytest.raises(ExpungeError, match="is not YAML"):
        Custom().build(suite)
    suite.write_text("- a\n")
    with pytest.raises(ExpungeError, match="is not a suite"):
        Custom().build(suite)
    changed(suite)
    (tmp_path / "holdout.jsonl").unlink()
    with pytest.raises(ExpungeError, match=r"holdout.jsonl"):
        Custom().build(suite)


def test_without_the_loss_attack_there_is_no_reference_attack(
    suite: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    tasks = [{**task, "metrics": ["mia_min_k"]} for task in SUITE["tasks"][:2]]
    changed(suite, tasks=tasks, model_utility=[], forget_quality=None)
    evaluation = evaluate(pico_llama, pico_tokenizer, suite="custom", data=suite, quiet=True)
    assert [score.metric for score in evaluation.scores] == ["mia_min_k", "mia_min_k_relative_difference", "privleak"]
