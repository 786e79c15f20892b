"""`expunge methods`: plain words for every method, and one that is explained."""

import re

import pytest

from expunge.cli.methods import GROUPS, START, Methods, listing, run
from expunge.methods import METHODS


def test_the_list_names_every_method_once_and_stays_within_its_width() -> None:
    text = listing(80)
    assert all(len(line) <= 80 for line in text.splitlines())
    entries = [line.split(":")[0].strip() for line in text.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    assert sorted(entry for entry in entries if entry in METHODS) == sorted(METHODS)


def test_every_method_says_what_it_is_for_and_every_family_has_a_group() -> None:
    assert all(cls.purpose and cls.weakness for cls in METHODS.values())
    assert {cls.family for cls in METHODS.values()} <= {family for group in GROUPS for family in group.families}


def test_the_first_recommendations_name_methods() -> None:
    """Each row names at least one, and no word that could be a method is anything else."""
    assert len(START) >= 8
    for _, method, _ in START:
        words = re.sub(r"\([^)]*\)|,", " ", method).split()
        assert set(words) & METHODS.keys() or words == ["none"], method
        assert not [word for word in words if "_" in word and word not in METHODS], method


def test_one_method_is_explained_with_its_purpose_and_weakness(capsys: pytest.CaptureFixture[str]) -> None:
    run(Methods(name="npo"))
    text = capsys.readouterr().out
    assert METHODS["npo"].purpose in text
    assert METHODS["npo"].weakness in text
    assert "--beta" in text


def test_a_composed_method_says_which_learning_rate_its_stages_take(capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in (("task_vector_negation", "1e-05 at 7 billion"), ("sku", "2e-05 at 7 billion"), ("spunge", "--each")):
        run(Methods(name=name))
        assert said in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("rate"))
