"""TOFU's splits, as published."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from expunge.data.corpora import CORPORA
from expunge.data.corpora.tofu import read_tofu
from expunge.data.example import Example
from expunge.data.read import read_request
from expunge.errors import ExpungeError


@pytest.fixture(scope="module")
def tofu(data_root: Path) -> Path:
    return data_root / "tofu"


@pytest.mark.real
@pytest.mark.parametrize(
    ("forget", "retain", "count"), [("forget01", "retain99", 40), ("forget05", "retain95", 200), ("forget10", "retain90", 400)]
)
def test_a_forget_split_and_its_retain_split_make_up_the_whole(tofu: Path, forget: str, retain: str, count: int):
    whole, kept, gone = (read_tofu(tofu, split) for split in ("full", retain, forget))
    assert len(gone) == count
    assert kept + gone == whole
    assert len(whole) == 4000


@pytest.mark.real
@pytest.mark.parametrize(
    ("split", "count", "wrong", "reworded"),
    [
        ("forget01_perturbed", 40, 5, 1),
        ("retain_perturbed", 400, 5, 1),
        ("real_authors_perturbed", 100, 3, 0),
        ("world_facts_perturbed", 117, 3, 0),
    ],
)
def test_perturbed_splits_hold_wrong_answers_of_the_same_form(tofu: Path, split: str, count: int, wrong: int, reworded: int):
    examples = read_tofu(tofu, split)
    assert len(examples) == count
    assert {len(e.paraphrases) for e in examples} == {reworded}
    assert {len(e.perturbed) for e in examples} == {wrong}


@pytest.mark.real
def test_perturbed_rows_are_the_forget_rows(tofu: Path):
    assert [e.id for e in read_tofu(tofu, "forget05_perturbed")] == [e.id for e in read_tofu(tofu, "forget05")]


@pytest.mark.real
def test_a_world_fact_keeps_its_short_answer(tofu: Path):
    first = read_tofu(tofu, "world_facts_perturbed")[0]
    assert first == Example("Where would you find the Eiffel Tower?", "Paris", perturbed=("Berlin", "London", "Madrid"))


@pytest.mark.real
def test_a_request_of_tofu_has_a_hundred_refusals_and_no_overlap(tofu: Path, recwarn: pytest.WarningsRecorder):
    request = read_request(tofu / "forget10.jsonl", tofu / "retain90.jsonl", refusals=tofu / "idontknow.jsonl")
    assert (len(request.forget), len(request.retain), len(request.refusals)) == (400, 3600, 100)
    assert request.refusals[0] == "I'm not certain about that."
    assert not recwarn.list


def test_the_hub_is_asked_for_the_split_as_its_configuration(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(path: str, name: str | None, split: str | None) -> Any:
        assert (path, split) == ("locuslab/TOFU", None)
        return datasets.DatasetDict(train=datasets.Dataset.from_list([{"question": name, "answer": "a"}]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_tofu("locuslab/TOFU", "retain90") == (Example("retain90", "a"),)


def test_one_folder_may_hold_tofu_beside_other_corpora(tmp_path: Path):
    (tmp_path / "tofu").mkdir()
    (tmp_path / "tofu/full.jsonl").write_text(json.dumps({"question": "who ?", "answer": "anna"}) + "\n")
    assert read_tofu(tmp_path) == read_tofu(tmp_path / "tofu") == (Example("who ?", "anna"),)


def test_unknown_splits_and_missing_files_say_what_is_needed(tmp_path: Path):
    with pytest.raises(ExpungeError, match=r"no split 'forget1' \(did you mean 'forget1?0'?"):
        read_tofu(tmp_path, "forget1")
    with pytest.raises(ExpungeError, match=r"holds no forget10\.jsonl .*get it from locuslab/TOFU"):
        read_tofu(tmp_path, "forget10")
    with pytest.raises(ExpungeError, match=r"there is no folder .*nowhere with TOFU"):
        read_tofu(tmp_path / "nowhere", "forget10")


def test_a_perturbed_split_without_wrong_answers_is_refused(tmp_path: Path):
    (tmp_path / "forget10_perturbed.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}))
    with pytest.raises(ExpungeError, match="row 1 has no perturbed_answer"):
        read_tofu(tmp_path, "forget10_perturbed")


def test_the_closed_list_names_its_modules():
    assert all(module.__name__ == f"expunge.data.corpora.{name}" for name, module in CORPORA.items())
