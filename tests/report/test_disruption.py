"""How much runs changed the model on neutral text: shown where measured, and different budgets are said."""

from pathlib import Path
from typing import Any

from expunge.records import Provenance
from expunge.report.disruption import unequal_disruption
from expunge.report.page_tables import run_table
from expunge.report.read import RunRecord


def run(name: str, **settings: Any) -> RunRecord:
    origin = Provenance(
        expunge="0.1.0", base="m", base_sha256="ab" * 32, data={}, counts={}, seed=0, versions={}, host="Linux", threads=1,
        processes=1, wall_seconds=1.0, device_seconds=1.0, peak_memory_bytes=1, settings=settings,
    )  # fmt: skip
    return RunRecord(name=name, folder=Path(name), provenance=origin)


def test_the_change_and_its_budget_are_a_column_of_the_runs() -> None:
    held, free, unmeasured = run("a", disruption_kl=0.0097, disruption_budget=0.01), run("b", disruption_kl=0.2), run("c")
    table = run_table([held, free, unmeasured], {})
    assert table is not None
    place = [column.title for column in table.columns].index("change on neutral text")
    cells = [row[place] for row in table.rows]
    assert [(cell.text, cell.interval) for cell in cells[:2]] == [("0.0097", "budget 0.01"), ("0.2", "no budget")]
    assert "--neutral" in (cells[2].note or "")
    plain = run_table([unmeasured], {})
    assert plain is not None
    assert all(column.title != "change on neutral text" for column in plain.columns)


def test_different_budgets_are_marked_and_equal_ones_are_not() -> None:
    held, other = run("a", disruption_kl=0.0097, disruption_budget=0.01), run("b", disruption_kl=0.004, disruption_budget=0.01)
    assert unequal_disruption([held, other, run("c")]) == []
    (said,) = unequal_disruption([held, run("d", disruption_kl=0.2)])
    assert said.startswith("the runs had different disruption budgets (a: 0.01 nats per token; d: no budget)")
