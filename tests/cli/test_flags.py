"""Names of flags, which are compared before a parser is built."""

import io
import re
import sys

import pytest

from expunge.cli import main


def listed(line: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Returns the flags in the help of a command, each at the beginning of its line; not those that are read earlier."""
    with pytest.raises(SystemExit):
        main([*line.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    found = {flag for text in lines if re.match(r"\W*--", text) for flag in re.findall(r"--[a-z][\w.-]*", text)}
    return found - {"--config", "--each", "--merge"}


@pytest.mark.parametrize("line", ["unlearn npo", "unlearn spunge --each rmu", "compare a b", "merge ties"])
def test_every_flag_in_the_help_of_a_command_is_known_before_its_parser_is_built(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = listed(line, capsys)
    assert len(flags) > 8
    assert main([*line.split(), *flags, "--no-such-flag"]) == 2
    assert "no flag '--no-such-flag'" in capsys.readouterr().err


def test_a_flag_may_have_underscores_and_a_value_that_looks_like_a_flag_is_not_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "ties", "--dry_run", "--out=--odd", "--tyop", "1"]) == 2
    assert "no flag '--tyop'" in capsys.readouterr().err


def test_a_mistake_reads_the_same_where_the_output_cannot_hold_the_characters_of_a_box(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["unlearn", "npo", "--model", "m", "--forget", "f", "--out", "o", "--dtype", "int8"]
    assert main(words) == 2
    said = capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(words) == 2
    assert capsys.readouterr().err == said
    assert "---" not in said


def test_an_empty_path_is_not_the_folder_here(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--model", "", "--forget", "f", "--out", "o"], ["--model=m", "--forget=f", "--out="]):
        assert main(["unlearn", "npo", *words]) == 2
        assert "is empty; give a path" in capsys.readouterr().err


def test_a_value_that_no_type_of_a_flag_takes_and_a_name_in_capitals_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unlearn", "npo", "--model", "m", "--forget", "f", "--out", "o", "--steps", "2.5"]) == 2
    assert "--steps takes INT or {auto}, not '2.5'; `expunge" in capsys.readouterr().err
    assert main(["unlearn", "NPO", "--model", "m", "--forget", "f", "--out", "o"]) == 2
    assert "no method 'NPO' (did you mean 'npo'?)" in capsys.readouterr().err
