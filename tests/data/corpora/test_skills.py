"""GSM8K, MBPP, HumanEval, MLQA and XQuAD: layouts, fields, prompts, and errors that name what is missing."""

import gzip
import json
import re
from decimal import Decimal
from pathlib import Path

import pytest

from expunge.data.corpora import gsm8k, humaneval, mbpp, squad
from expunge.data.read import read_examples
from expunge.errors import ExpungeError


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_gsm8k_is_read_as_published(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(lines({"question": "How many?", "answer": "1+1=<<1+1=2>>2\n#### 2"}))
    (problem,) = gsm8k.read_gsm8k(tmp_path)
    assert (problem.prompt, problem.response) == ("How many?", "1+1=<<1+1=2>>2\n#### 2")
    (tmp_path / "train.jsonl").write_text(lines({"question": "How many?", "answer": "2"}))
    with pytest.raises(ExpungeError, match=r"train\.jsonl line 1 has an answer without its last line"):
        gsm8k.read_gsm8k(tmp_path, "train")


def test_solutions_code_and_passages_are_raw_texts_to_probe(tmp_path: Path) -> None:
    rows = [{"question": f"How many {n}?", "answer": f"{n}\n#### {n}"} for n in range(5)]
    (tmp_path / "train.jsonl").write_text(lines(*rows))
    few = read_examples(f"{tmp_path}:solutions/train[number <= 2]")
    assert [(e.prompt, e.response) for e in few] == [(None, "0\n#### 0"), (None, "1\n#### 1")]
    assert read_examples(f"{tmp_path}:main/train")[0].prompt == "How many 0?"
    (tmp_path / "mbpp.jsonl").write_text(lines({**TASK, "task_id": 601}, {**TASK, "task_id": 600}))
    assert [(e.prompt, e.attributes) for e in read_examples(f"{tmp_path}:code/train")] == [(None, {"task_id": 601})]
    passages = [{"context": c, "qas": [{"id": f"{c}{i}", "question": "?", "answers": [{"text": c}]} for i in "ab"]} for c in "xy"]
    (tmp_path / "xquad.de.json").write_text(json.dumps({"data": [{"paragraphs": passages}]}))
    assert [e.response for e in read_examples(f"{tmp_path}:contexts/de")] == ["x", "y"]
    assert len(read_examples(f"{tmp_path}:questions/de")) == 4


def test_the_eight_worked_problems_are_right() -> None:
    """Every `a op b = c` in the solutions is computed, and the last result is the stated answer."""
    assert len(gsm8k.WORKED) == 8
    operations = {"+": Decimal.__add__, "-": Decimal.__sub__, "*": Decimal.__mul__, "/": Decimal.__truediv__}
    for _, solution in gsm8k.WORKED:
        steps = re.findall(r"((?:[\d.]+ [-+*/] )+[\d.]+) = ([\d.]+\d|\d)", solution)
        assert steps
        for left, right in steps:
            words = left.split()
            value = Decimal(words[0])
            for operation, number in zip(words[1::2], words[2::2], strict=True):
                value = operations[operation](value, Decimal(number))
            assert value == Decimal(right), left
        stated = re.fullmatch(r".*The answer is ([\d,]+)\.", solution)
        assert stated is not None
        assert Decimal(stated[1].replace(",", "")) == Decimal(steps[-1][1])


def test_worked_problems_stand_before_the_question() -> None:
    prompt = gsm8k.ask("How many?", shots=2)
    assert prompt.count("Q: ") == 3
    assert prompt.count("The answer is") == 2
    assert prompt.endswith("The answer is 27.\n\nQ: How many?\nA:")
    assert gsm8k.ask("How many?", shots=0) == "Q: How many?\nA:"


TASK = {"task_id": 11, "text": "Write add.", "code": "def add(a, b):\r\n  return a + b", "test_list": ["assert add(1, 2) == 3"]}


def test_mbpp_splits_go_by_task_id_and_line_ends_are_unix(tmp_path: Path) -> None:
    rows = [{**TASK, "task_id": number, "test_setup_code": ""} for number in (10, 11, 510, 511, 600, 601)]
    (tmp_path / "mbpp.jsonl").write_text(lines(*rows))
    found = {
        split: [e.attributes["task_id"] for e in mbpp.read_mbpp(tmp_path, split)] for split in ("prompt", "test", "validation")
    }
    assert found == {"prompt": [10], "test": [11, 510], "validation": [511, 600]}
    (task,) = mbpp.read_mbpp(tmp_path, "train")
    assert task.response == "def add(a, b):\n  return a + b"
    assert task.attributes["tests"] == "assert add(1, 2) == 3"


def test_mbpp_prompts_are_a_docstring_or_the_papers_three_shots(tmp_path: Path) -> None:
    (tmp_path / "mbpp.jsonl").write_text(lines(TASK))
    (task,) = mbpp.read_mbpp(tmp_path)
    assert mbpp.ask(task) == '"""\nWrite add.\nassert add(1, 2) == 3\n"""\n'
    three = mbpp.ask(task, [task])
    assert three.startswith("You are an expert Python programmer, and here is your task: Write add. Your code should pass")
    assert "[BEGIN]\ndef add(a, b):\n  return a + b\n[DONE]\n\nYou are" in three
    assert three.endswith("assert add(1, 2) == 3\n[BEGIN]\n")


def test_a_split_of_mbpp_that_the_file_lacks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mbpp.jsonl").write_text(lines(TASK))
    with pytest.raises(ExpungeError, match=r"no task of the split train \(task_id 601 to 974\)"):
        mbpp.read_mbpp(tmp_path, "train")


def test_humaneval_is_read_zipped_and_plain(tmp_path: Path) -> None:
    row = {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n", "test": "def check(c): pass"}
    (tmp_path / "HumanEval.jsonl").write_text(lines({**row, "entry_point": "f"}))
    (plain,) = humaneval.read_humaneval(tmp_path)
    assert (plain.prompt, plain.response) == ("def f():\n", "    return 1\n")
    assert plain.attributes["tests"] == "def check(c): pass\ncheck(f)"
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(lines({**row, "entry_point": "g"}).encode()))
    assert humaneval.read_humaneval(tmp_path)[0].attributes["entry_point"] == "g"


def squad_file(answers: list[str]) -> str:
    asked = {"id": "a1", "question": "Wer?", "answers": [{"text": text, "answer_start": 0} for text in answers]}
    return json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "Anna war es.", "qas": [asked]}]}], "version": 1})


@pytest.mark.parametrize(
    "name", ["xquad.de.json", "test/test-context-de-question-de.json", "MLQA_V1/test/test-context-de-question-de.json"]
)
def test_mlqa_and_xquad_are_read_from_their_own_folders(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(squad_file(["Anna", "Anna", "Frau Anna"]))
    (example,) = squad.read_squad(tmp_path, "de")
    assert example.prompt == "Context: Anna war es.\n\nQuestion: Wer?"
    assert (example.response, example.paraphrases) == ("Anna", ("Frau Anna",))
    assert example.attributes == {"language": "de", "context": "Anna war es."}


def test_what_is_wrong_with_a_squad_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "xquad.de.json").write_text(squad_file([]))
    with pytest.raises(ExpungeError, match=r"xquad\.de\.json, question a1, has no answer"):
        squad.read_squad(tmp_path, "de")
    (tmp_path / "xquad.de.json").write_text('{"data": [{}]}')
    with pytest.raises(ExpungeError, match="not in SQuAD's layout"):
        squad.read_squad(tmp_path, "de")
    with pytest.raises(ExpungeError, match=r"holds no xquad\.hi\.json \(nor test/test-context-hi-question-hi\.json"):
        squad.read_squad(tmp_path, "hi")


@pytest.mark.real
def test_the_real_files_are_whole(data_root: Path) -> None:
    assert len(gsm8k.read_gsm8k(data_root / "gsm8k", "train")) == 7473
    assert len(gsm8k.read_gsm8k(data_root / "gsm8k", "test")) == 1319
    assert [len(mbpp.read_mbpp(data_root / "mbpp", split)) for split in ("prompt", "test", "validation", "train")] == [
        10,
        500,
        90,
        374,
    ]
    assert len(humaneval.read_humaneval(data_root / "humaneval")) == 164
    assert {len(squad.read_squad(data_root / "xquad", language)) for language in squad.LANGUAGES} == {1190}
