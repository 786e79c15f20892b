"""The ladder's figure: a rung for each attack, gold beside it, and nothing said that the records do not hold."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from expunge.records import Attack, Gain, Score, write_json
from expunge.report import report
from expunge.report.ladder import attack_curves, ladder, significant, unequal_budgets
from expunge.report.page_tables import attack_table
from expunge.report.read import RunRecord


def tried(name: str, level: float, gain: float, *, p: float = 0.0005, trials: tuple[dict[str, Any], ...] = ()) -> Attack:
    scores = tuple(
        Score(task=task, metric="recall", role=role, value=value, low=value - 0.05, high=value + 0.05, n=72)
        for task, role, value in (("forget", "forget", level), ("before", "forget", 0.1), ("gold", "control", 0.1))
    )
    return Attack(
        attack=name,
        gain=Gain(value=gain, low=gain - 0.05, high=gain + 0.05),
        budget={"steps": 40},
        control={"of": "gold", "gold_before": 0.1, "gold_after": 0.12, "gold_p": p},
        scores=scores,
        trials=trials,
    )


STEPS = tuple({"way": f"facts, step {s}", "data": "facts", "step": s, "value": s / 50, "gold": 0.1} for s in (10, 20, 40))


@pytest.fixture
def attacked() -> RunRecord:
    absent = Attack(attack="gcg", applicable=False, reason="needs embeddings")
    attacks = (tried("relearn", 0.8, 0.7, trials=STEPS), tried("quantize", 0.11, 0.0, p=0.6), absent)
    return RunRecord(name="npo", folder=Path("npo"), attacks=attacks)


def test_a_rung_for_each_attack_with_its_gain_and_gold(attacked: RunRecord) -> None:
    svg = ladder([attacked])
    assert svg is not None
    assert svg.index("relearn") < svg.index("quantize") < svg.index(">gcg<")
    assert "0.80 after the attack, gold 0.10; gain +0.70 [+0.65, +0.75]" in svg
    assert "not applicable" in svg
    assert ladder([attacked.model_copy(update={"attacks": ()})]) is None


def test_significance_is_corrected_for_the_number_of_attacks() -> None:
    assert significant(tried("relearn", 0.8, 0.7, p=0.004), 10)
    assert not significant(tried("relearn", 0.8, 0.7, p=0.006), 10)
    assert not significant(Attack(attack="relearn"), 1)


def test_curves_are_drawn_where_there_is_something_along_an_axis(attacked: RunRecord) -> None:
    assert "relearning, step" in (attack_curves([attacked]) or "")
    one = attacked.model_copy(update={"attacks": (tried("relearn", 0.8, 0.7, trials=STEPS[:1]),)})
    assert attack_curves([one]) is None


def test_different_budgets_are_said(attacked: RunRecord) -> None:
    other = attacked.model_copy(
        update={"name": "other", "attacks": (tried("relearn", 0.8, 0.7).model_copy(update={"budget": {"steps": 80}}),)}
    )
    assert unequal_budgets([attacked, attacked]) == []
    (said,) = unequal_budgets([attacked, other])
    assert "relearn was run with different budgets" in said
    assert "other" in said


def test_the_table_has_a_column_for_each_level_and_budgets_in_plain_words(attacked: RunRecord) -> None:
    asked = attacked.attacks[0].model_copy(update={"budget": {"formats": ("a", "b"), "pairs": ((0.1, 0.2),), "partial": True}})
    table = attack_table([attacked.model_copy(update={"attacks": (asked, attacked.attacks[2])})])
    assert table is not None
    assert [cell.text for cell in table.rows[0][2:]] == [
        *("recall", "0.700", "0.800", "0.100", "0.100", "–", "formats a, b · pairs 0.1/0.2 · partial yes")
    ]
    assert [cell.text for cell in table.rows[1][2:]] == ["–"] * 7


def test_the_page_shows_the_ladder(lab, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lab.runs[3], tmp_path / lab.runs[3].name))
    (run / "attacks").mkdir()
    write_json(run / "attacks/relearn.json", tried("relearn", 0.8, 0.7, trials=STEPS))
    report([run], out=tmp_path / "report", original=lab.original, gold=lab.gold)
    assert "What each attack gets out of each run" in (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert (tmp_path / "report/ladder.svg").is_file()
    assert (tmp_path / "report/attack-curves.svg").is_file()
