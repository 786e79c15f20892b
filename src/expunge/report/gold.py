"""Compares each run with a model that never saw the forget set: verdicts in words and as a table."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from expunge.evaluation.verdict import LEVEL, Direction, Finding, Verdict, verdict
from expunge.report.glossary import meaning, number, task_label
from expunge.report.read import RunRecord
from expunge.report.tables import DASH, Cell, Column, Table, Tint

KINDS: dict[Direction, Literal["damage", "better", "moved"]] = {
    "still known": "damage",
    "over-forgotten": "better",
    "spread differently": "moved",
}
"""Colours of statistics that distinguish a run from gold."""
NAMES = {"mia_min_k": "least probable words (min-k)", "mia_min_k_plus_plus": "least probable words (min-k++)"}
"""Names of statistics that elsewhere stand for an attack's AUC."""


class Against(NamedTuple):
    """The verdicts of one suite."""

    suite: str
    verdicts: dict[str, Verdict]
    """Run -> verdict."""

    def indistinguishable(self) -> list[str]:
        """Returns the runs that no statistic distinguishes from gold."""
        return [name for name, found in self.verdicts.items() if found.words == "indistinguishable from gold"]

    def statistics(self) -> list[tuple[str, str]]:
        """Returns (task, metric) of everything that was compared, in order."""
        return list(dict.fromkeys((f.task, f.metric) for found in self.verdicts.values() for f in found.findings))


def against(suite: str, runs: Sequence[RunRecord], gold: RunRecord) -> Against | None:
    """Computes the verdicts; None if no run has samples to compare."""
    if not runs:
        return None
    return Against(suite, {run.name: verdict(run.samples.get(suite, ()), gold.samples.get(suite, ())) for run in runs})


def told_by(found: Verdict, most: int = 2) -> str:
    """Lists what distinguishes a run from gold, the clearest first: `truth ratio (still known), rank (over-forgotten) and 2
    more`."""
    named = [f"{_name(f.metric)} ({f.direction})" for f in found.apart[:most]]
    more = len(found.apart) - most
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _name(metric: str) -> str:
    return NAMES.get(metric, meaning(metric).label)


def gold_table(found: Against) -> Table:
    """Makes a table: one row per run, one column per statistic, with the mean difference from gold, coloured if it
    distinguishes the two."""
    asked = found.statistics()
    several = len({task for task, _ in asked}) > 1
    columns = [Column("model"), Column("verdict")]
    for task, metric in asked:
        title = _name(metric) + (f", {task_label(task)}" if several else "")
        columns.append(Column(title, True, None if metric in NAMES else meaning(metric).sentence))
    rows = []
    for name, verdict_of in found.verdicts.items():
        by_statistic = {(f.task, f.metric): f for f in verdict_of.findings}
        cells = [_cell(by_statistic.get(pair)) for pair in asked]
        words = Cell(verdict_of.words, note=verdict_of.untested) if verdict_of.untested else Cell(verdict_of.words)
        rows.append((Cell(name), words, *cells))
    caption = (
        "Mean difference from gold on the same samples (above 0: the run knows more), with the smaller of two corrected "
        f"p-values. Coloured: told apart at {100 * LEVEL:.0f}\u00a0%, orange where more is known, blue where less, grey where "
        "only the spread differs. “Too few”: neither a difference nor equality can be shown on so few samples."
    )
    return Table(f"{found.suite}-gold", caption, tuple(columns), tuple(rows))


def _cell(finding: Finding | None) -> Cell:
    if finding is None:
        return Cell(DASH, note="one of the two models has no samples of it")
    text = f"{finding.difference:+.3f}".replace("-", "−")
    below = f"p = {number('forget_quality', finding.p)}"
    below += {"apart": ", spread" if finding.direction == "spread differently" else "", "undecided": ", too few", "same": ""}[
        finding.found
    ]
    tint = Tint(0.6, KINDS[finding.direction]) if finding.found == "apart" else None
    return Cell(text, below, finding.difference, tint=tint, strong=finding.found == "apart")
