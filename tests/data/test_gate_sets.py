"""Training sets of ECO's gates: sizes and sides as published."""

from pathlib import Path

import pytest

from expunge.data.corpora.mmlu import SUBJECTS
from expunge.data.example import Example
from expunge.data.gate_sets import mmlu_gate, sentence_gate, title_gate, wmdp_gate
from expunge.errors import ExpungeError

MORE = [Example(f"further question {i}", " A") for i in range(200)]


@pytest.fixture
def mmlu(tmp_path: Path) -> Path:
    (tmp_path / "dev").mkdir()
    for subject in SUBJECTS:
        rows = [f"{subject} {i}?,a,b,c,d,B\n" for i in range(5)]
        (tmp_path / "dev" / f"{subject}_dev.csv").write_text("".join(rows))
    return tmp_path


@pytest.mark.parametrize(("topic", "forget"), [("economics", 10), ("law", 10), ("physics", 15)])
def test_a_topic_of_mmlu_against_all_other_subjects_and_more(mmlu: Path, topic: str, forget: int) -> None:
    found = mmlu_gate(mmlu, topic, MORE)
    assert len(found.forget) == forget
    assert len(found.retain) == 5 * 57 - forget + 8 * forget
    assert not {e.prompt for e in found.forget} & {e.prompt for e in found.retain}
    assert all("\nAnswer:" in str(e.prompt) for e in found.forget)
    assert found == mmlu_gate(mmlu, topic, MORE)
    with pytest.raises(ExpungeError, match="too few"):
        mmlu_gate(mmlu, topic, MORE[:9])
    with pytest.raises(ExpungeError, match="no gate for the topic"):
        mmlu_gate(mmlu, "math", MORE)


def test_half_of_everything_else_is_kept_apart_for_wmdp(mmlu: Path) -> None:
    like = [Example(f"synthetic {i}", " B") for i in range(300)]
    found = wmdp_gate(like, mmlu, MORE)
    assert len(found.forget) == 300
    assert len(found.retain) == (8 * 300 + 285) // 2 == 1342


def test_titles_and_sentences() -> None:
    titles = title_gate([Example("A storm - BBC News", "x")], [Example("Été", "y"), Example("Rain - CNN", "z")])
    assert [e.prompt for e in titles.forget] == ["A storm"]
    assert [e.prompt for e in titles.retain] == ["Rain"]
    book = 'He went home at night. "Is it you, Ann?" she asked. No.'
    found = sentence_gate(book, ["One long sentence here. " * 20])
    assert [e.response for e in found.forget] == ["He went home at night.", '"Is it you, Ann?"']
    assert len(found.retain) == 2
    with pytest.raises(ExpungeError, match="too few for a gate"):
        sentence_gate("No.", ["Yes."])
