"""Methods inside a method have flags of their own, under the name of their field."""

import pytest

from expunge.cli.nested import inner_choices, narrow
from expunge.errors import ExpungeError
from expunge.methods import NPO, Spunge


def test_the_last_word_wins_over_the_file_and_brings_its_own_defaults() -> None:
    said = {"name": "spunge", "each": {"name": "rmu", "layer": 3}, "merge": {"name": "linear"}}
    kept = narrow(Spunge, said, ["--split", "group"])
    assert kept.said == said
    assert kept.words == ["--split", "group"]
    changed = narrow(Spunge, said, ["--each", "rmu", "--merge=ties", "--each", "npo", "--least", "2"])
    assert changed.said == {"name": "spunge", "each": {"name": "npo"}, "merge": {"name": "ties"}}
    assert changed.words == ["--least", "2"]
    assert changed.spec.model_fields["each"].annotation is NPO


def test_without_a_word_the_defaults_stand() -> None:
    assert narrow(Spunge, {"name": "spunge"}, []).said["each"]["layer"] == "auto"


def test_only_methods_that_fit_can_be_inside() -> None:
    assert {"rmu", "npo", "task_vector_negation"} < set(inner_choices(Spunge)["each"])
    assert set(inner_choices(Spunge)) == {"each", "merge"}
    assert inner_choices(NPO) == {}
    with pytest.raises(ExpungeError, match=r"no method 'rum' for --each \(did you mean 'rmu'"):
        narrow(Spunge, {}, ["--each", "rum"])
    with pytest.raises(ExpungeError, match="--merge needs the name"):
        narrow(Spunge, {}, ["--merge"])
