"""Every corpus of the closed list: what it says of itself, and its sets in a folder and on the hub, by name."""

import inspect
import json
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest

from expunge.data import corpora
from expunge.data.corpora import CORPORA, SETS
from expunge.data.corpora.fields import Sets
from expunge.data.example import Attribute, Example
from expunge.data.read import read_examples
from expunge.errors import ExpungeError

RATED = {"text": "the sky is blue", "toxicity_human": 2.0, "toxicity_ai": 1.5, "target_group": "women"}
SCORED = {"text": "a fine day", "toxicity": 0.1, "severe_toxicity": 0.0, "obscene": 0.0, "threat": 0.0, "insult": 0.0}
BEGUN = {
    "prompt": {"text": "the rain", "toxicity": 0.1},
    "continuation": {"text": " falls", "toxicity": None},
    "challenging": False,
}
ROWS: dict[str, dict[str, Any]] = {
    "toxigen/toxigen-data:annotated": RATED,
    "toxigen/toxigen-data:prompts": {"prompt": "- one\\n-"},
    "google/civil_comments:": SCORED,
    "allenai/real-toxicity-prompts:": BEGUN,
    "Salesforce/wikitext:": {"text": " A paragraph . \n"},
    "cais/wmdp-corpora:": {"text": "a text"},
    "cais/wmdp-bio-forget-corpus:": {"title": "t", "abstract": "a", "text": "a text", "doi": "d"},
    "cais/wmdp-cyber-forget-corpus:": {"text": "a text"},
    "openai/gsm8k:": {"question": "how many?", "answer": "1 and 1 are 2\n#### 2"},
    **{
        f"google-research-datasets/mbpp:{kind}/{split}": {"task_id": number, "text": "t", "code": "c", "test_list": ["assert c"]}
        for kind in ("full", "code")
        for split, number in {"prompt": 1, "test": 11, "validation": 511, "train": 601}.items()
    },
    "facebook/mlqa:": {"context": "a passage", "question": "what?", "answers": {"text": ["a passage"], "answer_start": [0]}},
    "google/xquad:": {"context": "a passage", "question": "what?", "answers": {"text": ["a passage"], "answer_start": [0]}},
    "tatsu-lab/alpaca:": {"instruction": "write", "input": "", "output": "a"},
    "vicgalle/alpaca-gpt4:": {"instruction": "write", "input": "this", "output": "a"},
    "PKU-Alignment/PKU-SafeRLHF:": {
        "prompt": "p", "response_0": "bad", "response_1": "good", "is_response_0_safe": False, "is_response_1_safe": True
    },
    "truthfulqa/truthful_qa:": {
        "type": "Adversarial", "category": "Myths", "question": "q?", "best_answer": "b", "correct_answers": ["b", "c"],
        "incorrect_answers": ["w"], "source": "s",
    },
    "pminervini/HaluEval:": {
        "knowledge": "k", "question": "q?", "dialogue_history": "[Human]: q?", "document": "d",
        **{f"{kind}_{name}": kind for kind in ("right", "hallucinated") for name in ("answer", "response", "summary")},
    },
}  # fmt: skip
"""Hub id and the beginning of a set's name -> a row as published there."""
NAMED = [
    (sets, hub, name) for sets in SETS for hub, only in sets.hubs.items() for name in (sets.names if not only else ("", only))
]


def row_of(hub: str, name: str) -> dict[str, Any]:
    return next(row for start, row in ROWS.items() if f"{hub}:{name}".startswith(start))


def check(examples: tuple[Example, ...]) -> None:
    assert examples
    assert all(isinstance(value, Attribute) for example in examples for value in example.attributes.values())


def test_every_file_is_in_the_list_and_says_where_it_is_from() -> None:
    files = {module.name for module in pkgutil.iter_modules(corpora.__path__)} - {"fields"}
    assert files == set(CORPORA)
    for name, module in CORPORA.items():
        assert module.__name__ == f"expunge.data.corpora.{name}"
        assert "arXiv" in (module.__doc__ or "") or "http" in (module.__doc__ or ""), name


@pytest.mark.parametrize("module", CORPORA.values(), ids=CORPORA)
def test_every_reader_says_which_fields_become_what(module: ModuleType) -> None:
    readers = [f for name, f in inspect.getmembers(module, inspect.isfunction) if name.startswith("read_") and _own(module, f)]
    assert readers
    assert all(inspect.getdoc(reader) for reader in readers)


def _own(module: ModuleType, function: Any) -> bool:
    return bool(function.__module__ == module.__name__)


def test_no_two_corpora_have_a_set_of_the_same_name() -> None:
    names = [name for sets in SETS for name in sets.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("sets", "hub", "name"), NAMED, ids=[f"{hub}:{name}" for _, hub, name in NAMED])
def test_each_set_is_read_from_the_hub(monkeypatch: pytest.MonkeyPatch, sets: Sets, hub: str, name: str) -> None:
    asked: list[tuple[str, str | None, str | None]] = []

    def load_dataset(path: str, config: str | None = None, split: str | None = None) -> datasets.Dataset:
        asked.append((path, config, split))
        return datasets.Dataset.from_list([row_of(hub, name)] * 10)  # ten, so that a part of a tenth is not empty

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check(read_examples(f"{hub}:{name}" if name else hub))
    ((path, _, split),) = asked
    assert split is not None, "without a split the hub gives all of them"
    assert path in sets.hubs


@pytest.mark.parametrize("sets", SETS, ids=[sets.names[0] for sets in SETS])
def test_a_folder_without_the_set_is_one_sentence(tmp_path: Path, sets: Sets) -> None:
    for name in sets.names:
        with pytest.raises(ExpungeError, match=r"holds no .* get it from ") as error:
            read_examples(f"{tmp_path}:{name}")
        assert "\n" not in str(error.value)


def test_an_unknown_set_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match=r"no corpus has a set 'annotated/tran' \(did you mean 'annotated/train'\?\)"):
        read_examples(f"{tmp_path}:annotated/tran")
    with pytest.raises(ExpungeError, match=r"no set 'annotate/train' \(did you mean 'annotated/train'\?\)"):
        read_examples("toxigen/toxigen-data:annotate/train")
    with pytest.raises(ExpungeError, match=r"no set ''; write google/civil_comments:NAME with one of train, validation, test"):
        read_examples("google/civil_comments")


def test_the_whole_name_of_a_set_wins_over_a_shorter_one_of_another_corpus(tmp_path: Path) -> None:
    """TOFU has a set `full`, MBPP has `full/train`."""
    task = {"task_id": 601, "text": "t", "code": "c", "test_list": ["assert c"]}
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(task))
    (tmp_path / "full.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}))
    assert read_examples(f"{tmp_path}:full/train")[0].response == "c"
    assert read_examples(f"{tmp_path}:full")[0].response == "a"


def test_conditions_may_follow_a_source(tmp_path: Path) -> None:
    rows = [{**RATED, "text": f"text {i}", "toxicity_human": 1.0 + i, "target_group": "mexican folks"} for i in range(5)]
    rows.append({**RATED, "toxicity_human": 4.0})
    (tmp_path / "annotated_train.csv").write_text(_csv(rows))
    source = f"{tmp_path}:annotated/train"
    assert len(read_examples(source)) == 6
    assert [e.response for e in read_examples(f"{source}[severity > 3][group = mexican]")] == ["text 3", "text 4"]
    with pytest.raises(ExpungeError, match=r"annotated/train: none of 6 examples is left by 'severity > 5'"):
        read_examples(f"{source}[severity > 5]")
    odd = tmp_path / "a[1].jsonl"
    odd.write_text(json.dumps({"text": "brackets in a name"}))
    assert len(read_examples(odd)) == len(read_examples(str(odd))) == 1


def _csv(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    return "".join(",".join(map(str, line)) + "\n" for line in (names, *([row[name] for name in names] for row in rows)))
