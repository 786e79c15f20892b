"""The page of evaluation: its tables are those of the code, and its commands are commands."""

import re
import shlex
from pathlib import Path

import pytest

from expunge.cli.evaluate import Evaluate
from expunge.evaluation.explain import TABLES, filled
from expunge.evaluation.metrics import METRICS, OVERALL
from expunge.evaluation.suites import SUITES

PAGE = Path(__file__).parents[2] / "docs/evaluation.md"


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text) == text, "write them again: python -m expunge.evaluation.explain docs/evaluation.md"
    for name in (*SUITES, *METRICS, *OVERALL):
        assert re.search(rf"\b{name}\b|_{name}`", text), name


def test_a_table_that_is_out_of_date_is_written_again() -> None:
    text = "".join(f"# {name}\n<!-- {name} -->\nOUT OF DATE\n<!-- /{name} -->\nTHE END\n" for name in TABLES)
    page = filled(text)
    assert "OUT OF DATE" not in page
    assert page.count("THE END") == len(TABLES)
    assert filled(page) == page


def commands() -> list[str]:
    return re.findall(r"^(expunge evaluate .*--out runs.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_page_names_suites_and_options_that_there_are(command: str) -> None:
    words = shlex.split(command)
    flags = [word for word in words if word.startswith("--")]
    assert all(flag.removeprefix("--").replace("-", "_") in Evaluate.model_fields for flag in flags)
    suites = [SUITES[name] for name in words[words.index("--suite") + 1].split(",")]
    for field, value in (word.split("=") for word in words if "=" in word):
        assert any(field in suite.model_fields for suite in suites), field
        assert value


def test_the_page_has_commands() -> None:
    assert len(commands()) > 5
