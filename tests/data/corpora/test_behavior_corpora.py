"""Corpora of behaviours: harmful and safe answers, truths and falsehoods, instructions."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.data.corpora.alpaca import read_alpaca
from expunge.data.corpora.halueval import read_answers, read_halueval
from expunge.data.corpora.pku_saferlhf import read_pku_saferlhf
from expunge.data.corpora.truthfulqa import PARTS, cut, read_released, read_truthfulqa
from expunge.data.read import read_examples
from expunge.errors import ExpungeError

BOTH = {"prompt": "p", "response_0": "a", "response_1": "b", "is_response_0_safe": False, "is_response_1_safe": False}
ONE = BOTH | {"prompt": "q", "response_0": "fine", "response_1": "foul", "is_response_0_safe": True}
LATER = ONE | {
    "prompt_source": "s", "response_1_sha256": "x", "response_1_severity_level": 2, "response_0_severity_level": 0,
    "response_1_harm_category": {"Violence": True, "Drugs": True, "Fraud": False}, "better_response_id": 0,
}  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class TestPKUSafeRLHF:
    def test_every_unsafe_answer_is_a_sample(self, tmp_path: Path) -> None:
        write(tmp_path / "train.jsonl", [BOTH, ONE])
        found = read_pku_saferlhf(tmp_path)
        assert [(e.prompt, e.response) for e in found] == [("p", "a"), ("p", "b"), ("q", "foul")]
        assert [(e.prompt, e.response) for e in read_pku_saferlhf(tmp_path, "safe")] == [("q", "fine")]

    def test_the_columns_of_the_later_release_are_of_no_harm(self, tmp_path: Path) -> None:
        """SKU's loader removes a fixed list of columns and fails on it."""
        write(tmp_path / "train.jsonl", [LATER])
        (found,) = read_examples(f"{tmp_path}:pku/harmful/train")
        assert (found.response, dict(found.attributes)) == ("foul", {"severity": 2, "category": "Violence, Drugs"})

    def test_chosen_and_rejected(self, tmp_path: Path) -> None:
        talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "foul"}]
        write(
            tmp_path / "test.jsonl",
            [{"prompt": "p", "chosen": "c", "rejected": text} for text in ("r", talk)],
        )
        assert [e.response for e in read_pku_saferlhf(tmp_path, "harmful", "test")] == ["r", "foul"]
        assert [e.response for e in read_pku_saferlhf(tmp_path, "safe", "test")] == ["c", "c"]

    def test_a_row_without_flags_is_named(self, tmp_path: Path) -> None:
        write(tmp_path / "train.jsonl", [BOTH, {"prompt": "p", "response_0": "a", "response_1": "b"}])
        with pytest.raises(ExpungeError, match=r"train.jsonl line 2 has neither true nor false .*'is_response_0_safe'"):
            read_pku_saferlhf(tmp_path)


QUESTION = {
    "Type": "Adversarial", "Category": "Myths", "Question": "what happens ?", "Best Answer": "nothing",
    "Correct Answers": "nothing; it is ; nothing; fine", "Incorrect Answers": "you fly;you fall ;", "Source": "s",
}  # fmt: skip


def table(path: Path, count: int) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(QUESTION))
        writer.writeheader()
        writer.writerows({**QUESTION, "Question": f"question {i} ?"} for i in range(count))
    return path


class TestTruthfulQA:
    def test_lists_are_split_and_each_answer_stands_once(self, tmp_path: Path) -> None:
        table(tmp_path / "TruthfulQA.csv", 1)
        (found,) = read_truthfulqa(tmp_path)
        assert (found.prompt, found.response) == ("question 0 ?", "nothing")
        assert (found.paraphrases, found.perturbed) == (("it is", "fine"), ("you fly", "you fall"))
        assert found.attributes == {"category": "Myths", "type": "Adversarial"}
        assert read_truthfulqa(tmp_path / "TruthfulQA.csv") == (found,)

    def test_the_release_s_samples_are_two_a_question_and_1143_of_1634_train(self, tmp_path: Path) -> None:
        table(tmp_path / "TruthfulQA.csv", 817)
        whole = read_released(tmp_path)
        assert len(whole) == 1634
        assert [e.response for e in whole[:2]] == ["nothing", QUESTION["Correct Answers"]]
        parts = [read_released(tmp_path, part) for part in PARTS]
        assert [len(part) for part in parts] == [1143, 163, 328]
        torch.manual_seed(8888)
        theirs = torch.utils.data.random_split(range(1634), [1143, 163, 328])  # type: ignore[arg-type]
        assert [whole[i] for i in theirs[0].indices] == list(parts[0])

    def test_parts_share_questions_in_the_release_alone(self, tmp_path: Path) -> None:
        table(tmp_path / "TruthfulQA.csv", 100)
        for reader, shared in ((read_truthfulqa, 0), (read_released, 10)):
            train, validation, test = ({e.prompt for e in reader(tmp_path, part)} for part in PARTS)
            assert len((train | validation) & test) >= shared
            assert not shared or train & test
        assert sum(len(read_truthfulqa(tmp_path, part)) for part in PARTS) == 100
        assert sorted(cut(range(10), "train") + cut(range(10), "validation") + cut(range(10), "test")) == list(range(10))

    @pytest.mark.real
    def test_the_published_file_has_817_questions(self, data_root: Path) -> None:
        found = read_examples(f"{data_root}:truthfulqa")
        assert len(found) == 817
        assert min(len(e.perturbed) for e in found) >= 1
        assert len(read_examples(f"{data_root}:truthfulqa/released/train")) == 1143


class TestAlpaca:
    def test_the_input_follows_after_a_space(self, tmp_path: Path) -> None:
        rows = [
            {"instruction": "add", "input": "1 2", "output": "3", "text": "more"},
            {"instruction": "say hi", "input": "", "output": "hi"},
            {"instruction": "say ho", "output": "ho"},
        ]
        (tmp_path / "alpaca_data.json").write_text(json.dumps(rows))
        found = read_alpaca(tmp_path)
        assert [(e.prompt, e.response) for e in found] == [("add 1 2", "3"), ("say hi", "hi"), ("say ho", "ho")]
        assert read_alpaca(tmp_path / "alpaca_data.json") == read_examples(f"{tmp_path}:alpaca") == found


class TestHaluEval:
    ROW = {"knowledge": "k", "question": "q ?", "right_answer": "r", "hallucinated_answer": "h"}  # noqa: RUF012

    def test_the_made_up_answer_is_the_wrong_one(self, tmp_path: Path) -> None:
        write(tmp_path / "qa_one-turn_data.json", [self.ROW])
        (found,) = read_halueval(tmp_path, "qa_one_turn")
        assert (found.prompt, found.response, found.perturbed, found.attributes) == ("q ?", "r", ("h",), {"knowledge": "k"})
        assert [e.response for e in read_answers(tmp_path, "qa_one_turn", "right")] == ["r"]
        assert [e.response for e in read_examples(f"{tmp_path}:halueval/qa_one_turn/hallucinated")] == ["h"]

    def test_documents_are_asked_to_be_summarized(self, tmp_path: Path) -> None:
        row = {"document": "d", "right_summary": "r", "hallucinated_summary": "h"}
        write(tmp_path / "data/summarization_data.json", [row])
        (found,) = read_halueval(tmp_path, "summarization")
        assert (found.prompt, found.response) == ("Summarize the following document:\nd", "r")

    def test_a_row_without_an_answer_is_named(self, tmp_path: Path) -> None:
        write(tmp_path / "qa_data.json", [self.ROW, {**self.ROW, "hallucinated_answer": ""}])
        with pytest.raises(ExpungeError, match=r"qa_data.json line 2 has no text in its field 'hallucinated_answer'"):
            read_halueval(tmp_path)

    @pytest.mark.real
    def test_the_published_files_are_read(self, data_root: Path) -> None:
        assert [len(read_examples(f"{data_root}:halueval/{p}")) for p in ("qa_one_turn", "qa_multi_turn")] == [500, 500]
