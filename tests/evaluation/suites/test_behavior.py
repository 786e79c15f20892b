"""The suites truthfulness and behavior: what they ask, and how they judge it."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.errors import ExpungeError
from expunge.evaluation.judges import Classifier, Function
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites import Behavior, Truthfulness
from expunge.records import read_samples

COLUMNS = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def truths(tmp_path: Path) -> Path:
    (tmp_path / "truthfulqa").mkdir()
    lines = [f"Adversarial,Myths,what is {i} ?,number {i},number {i}; a count.,a color; a fish,s" for i in range(10)]
    (tmp_path / "truthfulqa/TruthfulQA.csv").write_text("\n".join([COLUMNS, *lines]) + "\n")
    write(
        tmp_path / "halueval/qa_one-turn_data.json",
        [{"knowledge": "k", "question": f"q {i} ?", "right_answer": "r", "hallucinated_answer": "h"} for i in range(3)],
    )
    return tmp_path


def true_enough(prompt: str | None, answer: str) -> float:
    return 0.9


class TestTruthfulness:
    def test_answers_end_with_a_full_stop_and_may_be_asked_as_q_and_a(self, truths: Path) -> None:
        (task,) = Truthfulness(tasks=("truthfulqa",)).build(truths).tasks
        assert task.examples[0].response == "number 0."
        assert task.examples[0].paraphrases == ("a count.",)
        assert task.examples[0].perturbed == ("a color.", "a fish.")
        (asked,) = Truthfulness(tasks=("truthfulqa",), style="qa").build(truths).tasks
        assert (asked.verbatim, asked.examples[0].prompt, asked.examples[0].response) == (
            True,
            "Q: what is 0 ?\nA:",
            " number 0.",
        )

    def test_a_part_leaves_out_what_was_trained_on(self, truths: Path) -> None:
        suites = [Truthfulness(tasks=("truthfulqa",), part=part).build(truths) for part in ("train", "test")]
        train, test = ({e.prompt for e in suite.tasks[0].examples} for suite in suites)
        assert (len(train), len(test), train & test) == (7, 2, set())

    def test_both_answers_are_judged_with_their_knowledge(self, truths: Path) -> None:
        (task,) = Truthfulness(tasks=("halueval_yes_no",), halueval=("qa_one_turn",)).build(truths).tasks
        assert task.name == "halueval_qa_one_turn_yes_no"
        assert [e.response for e in task.examples] == ["No", "Yes"] * 3
        assert "#Knowledge#: k\n#Question#: q 0 ?\n#Answer#: r\n#Your Judgement#:" in (task.examples[0].prompt or "")
        assert "#Answer#: h\n" in (task.examples[1].prompt or "")

    def test_a_judge_is_a_function_or_a_classifier(self, truths: Path) -> None:
        own = Truthfulness(tasks=("truthfulqa",), judge="tests.evaluation.suites.test_behavior:true_enough").build(truths)
        assert own.tasks[0].judges == (Function(function="tests.evaluation.suites.test_behavior:true_enough"),)
        model = Truthfulness(tasks=("truthfulqa",), judge="a/model", label="true").build(truths)
        assert model.tasks[0].judges == (Classifier(model="a/model", label="true"),)

    def test_all_of_it_is_scored(
        self, truths: Path, tmp_path: Path, byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        suite = Truthfulness(
            halueval=("qa_one_turn",), judge="tests.evaluation.suites.test_behavior:true_enough", max_new_tokens=4
        ).build(truths)
        found = evaluate(byte_llama, byte_tokenizer, suite=suite, out=tmp_path / "out", quiet=True)
        values = {(s.task, s.metric): s.value for s in found.scores}
        assert values["truthfulqa", "truthful_rate"] == 1
        assert all(value is not None for key, value in values.items() if key[1] != "yes_no")
        assert {metric for task, metric in values if task == "truthfulqa"} == {
            "mc1", "mc2", "mc3", "bleu_difference", "rouge_difference", "truthful_rate"
        }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("seen", "unseen", "normal"):
        write(tmp_path / f"data/{name}.jsonl", [{"prompt": f"{name} {i} ?", "response": r} for i in range(3) for r in ("a", "b")])
    return tmp_path / "data"


class TestBehavior:
    def test_a_prompt_counts_once_however_many_replies_it_has(self, folder: Path) -> None:
        suite = Behavior(words=("bad",)).build(folder)
        assert [(task.name, len(task.examples)) for task in suite.tasks] == [
            ("harmful_seen", 3), ("harmful_unseen", 3), ("normal", 3)
        ]  # fmt: skip
        assert {task.max_new_tokens for task in suite.tasks} == {500}

    def test_a_judge_is_needed_and_only_one(self, folder: Path) -> None:
        for fields in ({}, {"words": ("a",), "judge": "m"}):
            with pytest.raises(ExpungeError, match="needs a judge of what is harmful"):
                Behavior(**fields).build(folder)  # type: ignore[arg-type]

    def test_a_lab_brings_its_prompts_and_its_rule(self, tmp_path: Path) -> None:
        (tmp_path / "world.json").write_text(json.dumps({"rude_words": ["blurky"]}))
        for name in ("seen", "unseen", "normal"):
            write(tmp_path / f"data/behavior/{name}.jsonl", [{"prompt": "p", "response": "r"}])
        tasks = Behavior().build(tmp_path).tasks
        assert [type(judge).__name__ for judge in tasks[0].judges] == ["Keywords"]

    def test_other_sources_by_name_and_what_is_missing_is_said(self, folder: Path, tmp_path: Path) -> None:
        write(tmp_path / "other.jsonl", [{"prompt": "p", "response": "r"}])
        suite = Behavior(words=("a",), unseen=str(tmp_path / "other.jsonl")).build(folder)
        assert [e.prompt for e in suite.tasks[1].examples] == ["p"]
        (folder / "normal.jsonl").unlink()
        with pytest.raises(ExpungeError, match=r"holds no normal.jsonl, and no other source is given by normal="):
            Behavior(words=("a",)).build(folder)

    def test_answers_are_compared_with_those_of_before(
        self, folder: Path, tmp_path: Path, byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        short = {"words": ("bad",), "max_new_tokens": 12}
        evaluate(byte_llama, byte_tokenizer, suite=Behavior(**short).build(folder), out=tmp_path / "before", quiet=True)  # type: ignore[arg-type]
        suite = Behavior(**short, before=tmp_path / "before").build(folder)  # type: ignore[arg-type]
        found = evaluate(byte_llama, byte_tokenizer, suite=suite, out=tmp_path / "after", quiet=True)
        values = {(s.task, s.metric): s.value for s in found.scores}
        similar = [s for s in read_samples(tmp_path / "after/behavior.samples.jsonl") if s.metric == "similarity"]
        assert len(similar) == 3
        assert all(s.value == 1 or s.unscored for s in similar)
        assert values["harmful_seen", "harmful_rate"] == 0
        assert values["normal", "perplexity"] is not None
