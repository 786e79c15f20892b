"""Every seed that a person can give is one that all libraries take; another is one sentence."""

from importlib import import_module

import pytest
from pydantic import BaseModel, ValidationError, create_model

from expunge.cli import COMMANDS, main
from expunge.evaluation.suites import SUITES
from expunge.methods import METHODS
from expunge.training.settings import Training

FLAGS = [getattr(import_module(f"expunge.cli.{name}"), cls, None) for name, (cls, _) in COMMANDS.items()]
SEEDS: list[tuple[type[BaseModel], str]] = [
    (cls, field)
    for cls in (*METHODS.values(), *SUITES.values(), Training, *(cls for cls in FLAGS if cls is not None))
    for field in cls.model_fields
    if field.endswith("seed")
]


@pytest.mark.parametrize(("cls", "field"), SEEDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_seed_that_no_library_takes_is_refused(cls: type[BaseModel], field: str) -> None:
    for wrong in (10**19, -1):
        with pytest.raises(ValidationError, match=field):
            thawed(cls, field, wrong)


def thawed(cls: type[BaseModel], field: str, value: int) -> None:
    """Validates one field alone, whatever else the class needs."""
    info = cls.model_fields[field]
    create_model("One", **{field: (info.annotation, info)})(**{field: value})  # type: ignore[call-overload]


def test_twenty_digits_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(SEEDS) >= 8
    words = ["unlearn", "npo", "--model", "m", "--forget", "f", "--retain", "r", "--out", "o", "--seed", "12345678901234567890"]
    assert main(words) == 2
    assert "--seed: Input should be less than 4294967296" in capsys.readouterr().err
