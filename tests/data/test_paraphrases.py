"""Every wording of a forget row as a row of its own."""

import pytest

from expunge.data.example import Example, Request
from expunge.data.paraphrases import with_paraphrases
from expunge.errors import ExpungeError
from expunge.spec import Run, build

ANNA = Example("where was anna born ?", "in berlin", paraphrases=("berlin", "she is of berlin"), perturbed=("in paris",))
BORIS = Example("where was boris born ?", "in lima", paraphrases=("lima",))
CLARA = Example("where was clara born ?", "in oslo", attributes={"group": "a"})


def test_rows_of_a_source_stay_together_and_wordings_follow_one_another() -> None:
    found = with_paraphrases(Request((ANNA, BORIS, CLARA, ANNA), (CLARA,), (BORIS,), forget_sources=(3, 1)))
    first = ["in berlin", "in lima", "in oslo", "berlin", "lima", "she is of berlin"]
    assert [row.response for row in found.forget] == [*first, "in berlin", "berlin", "she is of berlin"]
    assert found.forget_sources == (6, 3)
    assert [row.response for row in found.holdout] == ["in lima", "lima"]
    assert found.retain == (CLARA,)


def test_a_wording_has_the_prompt_and_the_attributes_of_its_row_and_no_wordings_of_its_own() -> None:
    row = Example("who ?", "she", paraphrases=("it is she",), perturbed=("he",), attributes={"group": "b"})
    assert with_paraphrases(Request((row,))).forget == (row, Example("who ?", "it is she", attributes={"group": "b"}))


def test_rows_without_paraphrases_are_refused() -> None:
    with pytest.raises(ExpungeError, match="none of the forget rows has paraphrases"):
        with_paraphrases(Request((CLARA,)))


def test_methods_that_do_not_train_on_the_rows_refuse_it() -> None:
    with pytest.raises(ExpungeError, match="neuron_adjust does not train on the forget rows"):
        build(Run, {"model": "m", "forget": "f.jsonl", "method": {"name": "neuron_adjust"}, "paraphrases": True}, "run.yaml")
