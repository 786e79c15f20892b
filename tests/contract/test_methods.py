"""Every method, of whatever family, is on one list and explains itself."""

import inspect

import pytest

from expunge.cli import main
from expunge.methods import METHODS, UNLEARNING
from expunge.methods.base import Spec
from expunge.methods.composed import COMPOSED
from expunge.methods.editing import ADAPTER_MERGING, IN_PLACE, MERGING
from expunge.methods.guarding import GUARDING
from expunge.methods.training import TRAINING
from expunge.run import RUNNERS


def test_the_families_share_no_name_and_make_up_the_list() -> None:
    classes = (*TRAINING, *IN_PLACE, *GUARDING, *COMPOSED, *MERGING, *ADAPTER_MERGING)
    assert len(METHODS) == len(classes)
    assert set(METHODS.values()) == set(classes)


@pytest.mark.parametrize("cls", METHODS.values(), ids=lambda c: c.method_name())
def test_a_method_names_its_paper_formula_and_cost(cls: type[Spec]) -> None:
    assert all(isinstance(text, str) and text for text in (cls.paper, cls.formula, cls.cost))
    assert len(inspect.getdoc(cls) or "") > 60


@pytest.mark.parametrize("cls", METHODS.values(), ids=lambda c: c.method_name())
def test_every_field_is_described(cls: type[Spec]) -> None:
    assert all(info.description for name, info in cls.model_fields.items() if name != "name")


@pytest.mark.parametrize("name", METHODS)
def test_methods_explains_each(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", name]) == 0
    assert METHODS[name].formula in capsys.readouterr().out


@pytest.mark.parametrize("cls", UNLEARNING.values(), ids=lambda c: c.method_name())
def test_a_method_of_unlearn_has_a_runner(cls: type[Spec]) -> None:
    assert cls.family in RUNNERS


def test_unlearn_sends_a_merging_method_to_merge(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unlearn", "ties", "--model", "m", "--forget", "f", "--out", "o"]) == 2
    assert "expunge merge ties" in capsys.readouterr().err
