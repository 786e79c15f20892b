"""Shows several suites at a glance: key figures in one table, and forgetting against side effects in one figure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from expunge.records import Score
from expunge.report.checks import apart
from expunge.report.glossary import meaning, task_label
from expunge.report.groups import score_of, to_go
from expunge.report.key_figures import KeyFigure, key_figures
from expunge.report.read import RunRecord
from expunge.report.sections import Section, place_of
from expunge.report.tables import Cell, Column, Table, score_cell, tint_of
from expunge.report.tradeoff import Point, cost_tradeoff, drawable


class Overview(NamedTuple):
    table: Table
    figures: dict[str, str]
    """Word for its file name -> SVG: one for each pair of a suite with a forget task and another with tasks to keep."""
    undrawn: dict[str, str]


def overview(
    sections: Sequence[Section], runs: Sequence[RunRecord], original: RunRecord | None, gold: RunRecord | None
) -> Overview | None:
    """Makes the overview; None for a single suite, whose own summary comes first on the page."""
    if len(sections) < 2:
        return None
    references = [m for m in (original, gold) if m and m.evaluations]
    models = [*references, *(run for run in runs if run.evaluations)]
    columns: list[Column] = []
    cells: list[list[Cell]] = [[] for _ in models]
    for section in sections:
        for figure in key_figures(section, models):
            columns.append(Column(f"{section.suite}: {figure.title}", True, figure.explanation))
            for model, row in zip(models, cells, strict=True):
                row.append(_cell(figure, model, section, original))
    caption = "The key figures of every suite, with 95 % intervals."
    rows = tuple((Cell(model.name), *row) for model, row in zip(models, cells, strict=True))
    table = Table("overview", caption, (Column("model"), *columns), rows, apart=len(references))
    figures: dict[str, str] = {}
    undrawn: dict[str, str] = {}
    for gone in sections:
        for stays in sections:
            if gone is not stays and not gone.figure and original:
                svg, reasons = _plane(gone.suite, stays, models, original, gold)
                figures |= {f"{gone.suite}-against-{stays.suite}": svg} if svg else {}
                undrawn |= reasons
    return Overview(table, figures, undrawn)


def _cell(figure: KeyFigure, model: RunRecord, section: Section, original: RunRecord | None) -> Cell:
    score = figure.scores.get(model.name)
    if score is None and model is original and model.evaluation(section.suite):
        return Cell("")  # it is what the others are compared with
    cell = score_cell(score, tint=tint_of(score.value, score) if score and score.metric == "change" else None)
    return replace(cell, interval=figure.said[model.name]) if model.name in figure.said else cell


def _plane(
    gone: str, stays: Section, models: Sequence[RunRecord], original: RunRecord, gold: RunRecord | None
) -> tuple[str | None, dict[str, str]]:
    """Draws one point per model: the mean change of what one suite keeps (across), and the forget score of another suite
    (up)."""
    scored = [m for m in models if m.evaluation(gone)]
    asked = next(iter(to_go(gone, scored)), None)
    if asked is None or stays.changes is None or to_go(stays.suite, scored):
        return None, {}
    points = []
    for m in scored:
        left = score_of(m, gone, asked)
        if left is None or apart(m, original, gone):
            reason = f"it has no {meaning(asked.metric).label} on the samples of the suite {gone} that the original was scored on"
            left = Score(task=asked.task, metric=asked.metric, value=None, n=0, unscored=reason)
        if m is original:
            points.append(Point(m.name, "original", "training", Score(task="suite", metric="change", value=0.0, n=0), left))
        elif m.name in stays.changes.after:
            points.append(Point(m.name, place_of(m, original, gold), m.family or "training", stays.changes.mean(m.name), left))
    drawn, undrawn = drawable(points)
    if not any(p.place == "method" for p in drawn):
        return None, undrawn
    across = f"{stays.suite}: mean change over {len(stays.changes.asked)} tasks to keep"
    up = f"{gone}: {meaning(asked.metric).label}, {task_label(asked.task)}"
    return cost_tradeoff(drawn, f"{gone}-{stays.suite}-cost", across, up), undrawn
