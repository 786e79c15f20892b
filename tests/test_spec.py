"""A run is a value: through YAML, through the command line, and back."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge.cli.flags import parse
from expunge.cli.nested import inner_choices
from expunge.data.format import Format
from expunge.errors import ExpungeError
from expunge.methods import NPO, UNLEARNING
from expunge.spec import FineTuneRun, Run, build, read_yaml, to_yaml
from expunge.training.settings import Training

PLAIN: dict[str, Any] = {"model": "m", "forget": "f.jsonl", "method": {"name": "npo"}}


@pytest.mark.parametrize("name", UNLEARNING)
def test_a_run_round_trips_through_yaml(name: str) -> None:
    run = Run.model_validate({**PLAIN, "method": {"name": name}, "format": Format().model_dump(), "training": {"steps": 3}})
    again = build(Run, yaml.safe_load(to_yaml(run)), "run.yaml")
    assert again == run
    assert type(again.method) is UNLEARNING[name]


@pytest.mark.parametrize("name", UNLEARNING)
def test_a_method_round_trips_through_the_command_line(name: str) -> None:
    cls = UNLEARNING[name]
    spec = cls()
    words = []
    for field, value in spec.model_dump().items():
        if field != "name" and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            words += [f"--{field.replace('_', '-')}", str(value)]
    assert parse(cls, "expunge unlearn", words, prefixes=bool(inner_choices(cls))) == spec


def test_every_default_is_written_out() -> None:
    written = yaml.safe_load(to_yaml(Run.model_validate(PLAIN)))
    assert set(written) == set(Run.model_fields)
    assert set(written["training"]) == set(Training.model_fields)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"modle": "x"}, r"no field 'modle' \(did you mean 'model'\?\)"),
        ({"method": {"name": "npo", "bta": 1}}, r"no field 'method.npo.bta' \(did you mean 'beta'\?\)"),
        ({"training": {"learning_rat": 1}}, r"did you mean 'learning_rate'\?"),
        ({"method": {"name": "npo", "beta": -1}}, "greater than 0"),
        ({"training": {"steps": "many"}}, "training.steps"),
        ({"forget": 3}, "forget"),
    ],
)
def test_a_wrong_field_is_one_sentence_with_its_path(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ExpungeError, match=match) as caught:
        build(Run, {**PLAIN, **change}, "run.yaml")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("a: [")
    with pytest.raises(ExpungeError, match=r"run\.yaml is not YAML"):
        read_yaml(path)


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        NPO().beta = 1.0  # type: ignore[misc]


def test_a_finetune_run_needs_data() -> None:
    with pytest.raises(ExpungeError, match="needs the field 'data'"):
        build(FineTuneRun, {"model": "m"}, "run.yaml")
