"""What a message advises can be pasted: its commands are commands, and its flags are flags."""

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel

import expunge
from expunge.cli import COMMANDS
from expunge.methods import METHODS
from expunge.spec import FineTuneRun, Run
from expunge.training.settings import Training

SOURCE = Path(expunge.__file__).parent


@cache
def flags() -> frozenset[str]:
    """Every flag of every command."""
    models: list[type[BaseModel]] = [Run, FineTuneRun, Training, *METHODS.values()]
    for name in COMMANDS:
        module = import_module(f"expunge.cli.{name}")
        models += [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, BaseModel)]
    models.append(import_module("expunge.cli.runs").Folder)
    found = {field.replace("_", "-") for model in models for field in model.model_fields}
    return frozenset(found | {"no-" + name for name in found} | {"help", "version", "forget-question"})


def messages() -> list[tuple[str, str]]:
    """(place, text) of what ExpungeError is raised with, anywhere."""
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ExpungeError"):
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
                found.append((f"{file.relative_to(SOURCE)}:{node.lineno}", " ".join(texts)))
    return found


def test_every_flag_that_a_message_names_is_a_flag() -> None:
    found = messages()
    assert len(found) > 200
    named = [(place, flag) for place, text in found for flag in re.findall(r"(?<![\w-])--([a-z][a-z-]*[a-z])", text)]
    wrong = [(place, flag) for place, flag in named if flag not in flags() and flag not in ("nproc",)]
    assert not wrong


def test_every_command_that_a_message_names_is_a_command() -> None:
    named = [(place, word) for place, text in messages() for word in re.findall(r"(?:`|: )expunge ([a-z]+)", text)]
    assert len(named) > 10
    assert not [(place, word) for place, word in named if word not in COMMANDS]


def test_columns_may_be_given_with_equals_signs() -> None:
    from expunge.cli.flags import parse
    from expunge.cli.probe import Probe

    words = ["m", "--columns", "response=a=b", "prompt=q", "--forget", "f", "--out", "o"]
    assert parse(Probe, "expunge probe", words).columns == {"response": "a=b", "prompt": "q"}


@pytest.mark.parametrize("given", [["--columns", "response", "q"], ["--columns", "attributes.group", "q"]])
def test_columns_are_given_as_messages_say(given: list[str]) -> None:
    from expunge.cli.flags import parse
    from expunge.cli.probe import Probe

    words = ["m", "--forget", "f", "--out", "o", *given]
    assert parse(Probe, "expunge probe", words).columns == {given[1]: given[2]}
