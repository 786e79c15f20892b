"""What a data file holds is read, or it is said what is not."""

import json
import warnings
from pathlib import Path

import pytest

from expunge.data.read import read_examples, read_request
from expunge.errors import ExpungeError

ALPACA = {"prompt": "instruction", "response": "output"}


def rows(path: Path, *values: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_alpacas_input_follows_its_instruction_and_that_is_said(tmp_path: Path) -> None:
    file = rows(
        tmp_path / "a.jsonl",
        {"instruction": "translate", "input": "red dog", "output": "roter hund"},
        {"instruction": "name a color", "input": "", "output": "blue"},
    )
    with pytest.warns(UserWarning, match="1 of 2 rows of .* have an `input`"):
        first, second = read_examples(file, columns=ALPACA)
    assert (first.prompt, second.prompt) == ("translate\nred dog", "name a color")


def test_an_input_that_is_mapped_itself_is_no_second_part(tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", {"instruction": "translate", "input": "red dog", "output": "roter hund"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (example,) = read_examples(file, columns={**ALPACA, "attributes.about": "input"})
    assert example.prompt == "translate"
    assert example.attributes == {"about": "red dog"}


def test_texts_in_columns_that_are_not_named_are_said(tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", {"q": "who", "a": "anna", "context": "a long text", "year": 3})
    with pytest.warns(UserWarning, match=r"a\.jsonl has texts in context, which are left out; name them with --columns"):
        read_examples(file, columns={"prompt": "q", "response": "a"})


def test_texts_beside_prompt_and_response_are_said_too(tmp_path: Path) -> None:
    """Where nothing was mapped. Labels, numbers and empty columns are no texts."""
    file = rows(
        tmp_path / "a.jsonl",
        {"prompt": "who", "response": "anna", "context": "a long text", "year": 3, "note": " ", "attributes": {"group": "g"}},
    )
    with pytest.warns(UserWarning, match=r"a\.jsonl has texts in context, which are left out"):
        read_examples(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_examples(file, columns={"attributes.context": "context"})


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_a_csv_with_another_separator_is_named_as_such(tmp_path: Path, mark: str, name: str) -> None:
    (tmp_path / "a.csv").write_text(f"prompt{mark}response\nwho{mark}anna\n")
    with pytest.raises(ExpungeError, match=f"has its columns between {name}"):
        read_examples(tmp_path / "a.csv")


@pytest.mark.parametrize("flag", ["forget", "retain", "holdout"])
def test_a_missing_file_is_named_with_its_flag(tmp_path: Path, flag: str) -> None:
    here = rows(tmp_path / "a.jsonl", {"prompt": "who", "response": "anna"})
    files = {"forget": here, "retain": here, "holdout": here, flag: tmp_path / "nowhere.jsonl"}
    with pytest.raises(ExpungeError, match=rf"--{flag}: there is no file or folder .*nowhere\.jsonl"):
        read_request(**files)


def test_a_text_beside_prompt_and_response_is_said_and_can_be_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "q", "response": "a", "text": "Question: q Answer: a"}\n')
    with pytest.warns(UserWarning, match="1 of 1 rows of .* have a text beside their prompt and response, which is left out"):
        assert read_examples(file)[0].response == "a"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_examples(file, columns={"text": "text"})[0].response == "Question: q Answer: a"


def test_nan_is_a_missing_cell_in_json_too(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "q", "response": "a", "choices": NaN, "paraphrases": NaN, "attributes": NaN}\n')
    (example,) = read_examples(file)
    assert (example.response, example.choices, example.paraphrases) == ("a", (), ())


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.jsonl", '{"prompt": "q", "response": "a", "response": "b"}', "'response' is there twice in one object"),
        ("a.csv", "prompt,response,perturbed\nq,a,\"['in paris', 'in oslo']\"", "perturbed that are not JSON; write them like"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "q"}]}', "has a chat in messages, .* prompt and response"),
        ("a.jsonl", '{"prompt": [{"role": "user", "content": "q"}], "response": "a"}', "has a chat in prompt"),
    ],
)  # fmt: skip
def test_what_would_be_read_as_something_else_is_refused(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(f"{text}\n")
    with pytest.raises(ExpungeError, match=reason):
        read_examples(tmp_path / name)


def test_a_text_in_brackets_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,response,perturbed\nq,a,[Applause] oslo\n")
    assert read_examples(tmp_path / "a.csv")[0].perturbed == ("[Applause] oslo",)
