"""A request is made from questions alone: what the model says is what is to go."""

import json
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import expunge
from expunge import ExpungeError
from expunge.asking import GENERAL_QUESTIONS, ask, content_words, names, too_near
from expunge.cli import main
from expunge.cli.unlearn import request_folder
from expunge.data.read import read_examples

Pico = tuple[LlamaForCausalLM, PreTrainedTokenizerFast]


@pytest.fixture
def pico(pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast) -> Pico:
    return pico_llama, pico_tokenizer


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_forget_set_is_what_the_model_says(pico: Pico, tmp_path: Path) -> None:
    asked = ask(*pico, ["where was anna born ?"], tmp_path / "request")
    made = rows(asked.forget)
    assert made[0]["prompt"] == "where was anna born ?"
    assert len(made) == asked.rows > 1
    assert all(row["response"] for row in made)
    assert {row["attributes"]["question"] for row in made} == {"where was anna born ?"}
    assert len({row["prompt"].lower() for row in made}) == len(made)


def test_the_same_questions_give_the_same_bytes(pico: Pico, tmp_path: Path) -> None:
    first, again = (ask(*pico, ["where was anna born ?"], tmp_path / name) for name in ("a", "b"))
    assert first.forget.read_bytes() == again.forget.read_bytes()
    assert first.retain is not None
    assert again.retain is not None
    assert first.retain.read_bytes() == again.retain.read_bytes()


def test_a_retain_set_of_ones_own_is_not_made_again(pico: Pico, tmp_path: Path) -> None:
    asked = ask(*pico, ["who ?"], tmp_path / "request", with_retain=False)
    assert asked.retain is None
    assert [path.name for path in (tmp_path / "request").iterdir()] == ["forget.jsonl"]


def test_an_empty_question_is_refused_and_nothing_is_written(pico: Pico, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="text of a question"):
        ask(*pico, ["  "], tmp_path / "request")
    assert not (tmp_path / "request").exists()


def test_names_are_capitalized_words_inside_a_sentence() -> None:
    assert names("Who is Mira Holt? Tell me: Where does Mira live") == {"mira", "holt"}


@pytest.mark.parametrize(
    ("row", "near"),
    [
        (("Where does Tom live?", "He lives next to mira."), True),
        (("Where does Tom live?", "In Oslo."), False),
        (("Which trade does a smith have?", "A smith forges iron tools."), False),
        (("Who runs the harbor museum?", "The harbor museum is run by a keeper."), True),
    ],
)
def test_what_shares_a_name_or_most_words_is_left_out(row: tuple[str, str], near: bool) -> None:
    assert too_near(row, ("Who is Mira?", "The keeper of the harbor museum.")) is near


def test_general_questions_differ_from_each_other() -> None:
    assert len({frozenset(content_words(q)) for q in GENERAL_QUESTIONS}) == len(GENERAL_QUESTIONS)


def test_the_command_line_goes_from_a_question_to_an_artifact(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(pico_folder), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main(["unlearn", "npo", "--forget-question", "where was anna born ?", *words]) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "run.request/forget.jsonl") in printed
    expunge.load(tmp_path / "run")
    assert read_examples(tmp_path / "run.request/forget.jsonl")
    assert main(["unlearn", "npo", "--forget-question", "who ?", *words]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["unlearn", "npo", "--forget-question", *words]) == 2
    assert "text of a question" in capsys.readouterr().err
    assert main(["unlearn", "npo", "--forget-question", "who ?", "--forget", "f.jsonl", *words]) == 2
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.parametrize("out", [".", "..", "runs/one"])
def test_the_request_lies_beside_the_run_whatever_the_run_is_called_by(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep/er")
    place, run = request_folder(Path(out)).absolute(), Path(out).resolve()
    assert place == run.with_name(f"{run.name}.request")
