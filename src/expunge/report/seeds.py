"""Summarizes runs that differ only in their seed: the median of their figures, and their range over seeds.

The intervals elsewhere are over samples: how much a value would change with other questions. This shows the other source of
uncertainty.
"""

import json
from collections.abc import Sequence
from statistics import median
from typing import Any

import yaml

from expunge.report.glossary import interval, number
from expunge.report.key_figures import key_figures
from expunge.report.read import RunRecord
from expunge.report.sections import Section
from expunge.report.tables import DASH, Cell, Column, Table


def seed_groups(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Returns groups of runs of one method, with the same settings, start and data, and different seeds."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        if run.artifact and run.provenance and run.config:
            groups.setdefault(_configuration(run), []).append(run)
    return [group for group in groups.values() if len({run.provenance.seed for run in group if run.provenance}) > 1]


def _configuration(run: RunRecord) -> str:
    assert run.artifact is not None
    assert run.provenance is not None
    settings: Any = yaml.safe_load(run.config or "")
    if isinstance(settings, dict):
        for part in (settings, settings.get("training")):
            if isinstance(part, dict):
                part.pop("seed", None)
    origin = run.provenance
    return json.dumps(
        [settings, run.artifact.method, origin.base_sha256, origin.data, origin.expunge], sort_keys=True, default=str
    )


def seed_table(
    sections: Sequence[Section], runs: Sequence[RunRecord], original: RunRecord | None, gold: RunRecord | None
) -> Table | None:
    """Makes one row per configuration; None if no two runs share one."""
    groups = seed_groups(runs)
    if not groups:
        return None
    columns, rows = [Column("method"), Column("runs")], [[Cell(group[0].method or DASH), Cell(_names(group))] for group in groups]
    for section in sections:
        for figure in key_figures(section, [m for m in (original, gold, *runs) if m]):
            columns.append(Column(f"{section.suite}: {figure.title}", True, figure.explanation))
            for row, group in zip(rows, groups, strict=True):
                scores = [figure.scores[run.name] for run in group if run.name in figure.scores]
                values = [score.value for score in scores if score.value is not None]
                if len(values) < 2:
                    row.append(Cell(DASH, note="fewer than two of the runs have it"))
                    continue
                metric, middle = scores[0].metric, median(values)
                row.append(Cell(number(metric, middle), interval(metric, min(values), max(values)), middle))
    caption = "Runs that differ in nothing but their seed: the median, and below it the least and the greatest value over seeds."
    return Table("seeds", caption, tuple(columns), tuple(map(tuple, rows)))


def _names(group: Sequence[RunRecord]) -> str:
    return ", ".join(f"{run.name} (seed {run.provenance.seed})" for run in group if run.provenance)
