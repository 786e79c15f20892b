"""Shows a run that unlearned the parts of its forget set separately (SPUNGE): the results of each part, and of their merge."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from expunge.report.curves import loss_curves
from expunge.report.groups import groups
from expunge.report.page_tables import duration, score_table
from expunge.report.radar import GroupFigure, draw_groups
from expunge.report.read import RunRecord
from expunge.report.tables import DASH, Cell, Column, Table


class PartScores(NamedTuple):
    """One suite that at least one part was scored with."""

    suite: str
    table: Table
    groups: list[GroupFigure]
    """A polygon for each part, and one for their merge."""


class PartsOf(NamedTuple):
    """The parts of one run."""

    run: str
    table: Table
    merged: str | None
    """Describes what the merge kept."""
    curves: str | None
    scores: list[PartScores]

    def tables(self) -> list[Table]:
        return [self.table, *(scores.table for scores in self.scores)]


def parts_of(run: RunRecord, references: Sequence[tuple[str, RunRecord]], place: str) -> PartsOf | None:
    """Returns the parts; None for a run without parts.

    references   (`original` or `gold`, model)
    place        a word for the names of its tables and figures
    """
    if not run.parts:
        return None
    names = [f"{run.name}, merged" if part is run else part.name for part in (run, *run.parts)]
    models = [m.model_copy(update={"name": name}) for m, name in zip((run, *run.parts), names, strict=True)]
    suites = dict.fromkeys(e.suite for part in run.parts for e in part.evaluations)
    scores = [_scores(suite, models, references, place) for suite in suites]
    return PartsOf(run.name, part_table(run, place), merge_sentence(run), loss_curves(run.parts, f"{place}-curves"), scores)


def _scores(suite: str, models: Sequence[RunRecord], references: Sequence[tuple[str, RunRecord]], place: str) -> PartScores:
    scored = [model for model in models if model.evaluation(suite)]
    before = [(role, model) for role, model in references if model.evaluation(suite)]
    original = next((model for role, model in before if role == "original"), None)
    table = score_table(suite, [*(model for _, model in before), *scored], original)
    table = replace(table, name=f"{place}-{suite}-scores", caption=f"{table.caption} The parts beside their merge.")
    return PartScores(suite, table, draw_groups(groups(suite, [*(model for _, model in before), *scored]), before, scored, place))


def part_table(run: RunRecord, place: str) -> Table:
    """Makes one row per part: rows, steps, first and last loss, why it ended, time and memory."""
    rows = []
    for i, part in enumerate(run.parts):
        origin = part.provenance
        counts = origin.counts if origin else {}
        first, last = (part.steps[0], part.steps[-1]) if part.steps else (None, None)
        unfinished = "it was not finished: there is no provenance.json"
        rows.append(
            (
                Cell(part.name),
                _count(counts.get("forget", counts.get("data")), unfinished),
                _count(last.step if last else None, "it took no steps"),
                _loss(first.loss if first else None),
                _loss(last.loss if last else None),
                *(_loss(last.parts.get(term) if last else None) for term in ("forget", "retain")),
                Cell((origin.stopped or ("all steps done" if last else "in one pass")) if origin else "unfinished"),
                Cell(str(origin.seed)) if origin else Cell(DASH, note=unfinished),
                Cell(duration(origin.wall_seconds), value=origin.wall_seconds) if origin else Cell(DASH, note=unfinished),
                *_merged(run, i),
            )
        )
    titles = ["rows", "steps", "loss, first step", "loss, last step", "forget term, last", "retain term, last"]
    columns = [Column("part"), *(Column(t, True) for t in titles), Column("ended"), Column("seed", True), Column("time", True)]
    if run.merge:
        columns += [Column("weights changed", True), Column("kept by the merge", True)][: 2 if run.merge.kept else 1]
    return Table(f"{place}-parts", f"The parts of {run.name}, each unlearned from the same start.", tuple(columns), tuple(rows))


def _count(value: int | None, reason: str) -> Cell:
    return Cell(DASH, note=reason) if value is None else Cell(f"{value:,}", value=value)


def _loss(value: float | None) -> Cell:
    return (
        Cell(DASH, note="not a term of its loss, or it took no steps")
        if value is None
        else Cell(f"{value:.4g}".replace("-", "−"), value=value)
    )


def merge_sentence(run: RunRecord) -> str | None:
    """Describes what became of the parts' changes, from merge.json."""
    merge = run.merge
    if merge is None:
        return None
    outvoted = ""
    if merge.kept and merge.outvoted:
        share = _percent(merge.outvoted, sum(merge.kept))
        outvoted = (
            " Where two parts pull a weight in opposite directions, the stronger side wins: "
            f"{share} of the changes that were kept were on the losing side and were dropped."
        )
    size = f"{100 * merge.change:.3g} % of their size"
    return f"Merged by {merge.method}.{outvoted} The merge moved the weights that it changed by {size}."


def _merged(run: RunRecord, index: int) -> list[Cell]:
    """Returns how many weights the part changed, and how many of these changes the merge kept."""
    merge = run.merge
    if merge is None or index >= len(merge.changed_elements):
        return []
    changed = Cell(_percent(merge.changed_elements[index], merge.elements), value=merge.changed_elements[index])
    if merge.kept is None:
        return [changed]
    return [changed, Cell(_percent(merge.kept[index], merge.changed_elements[index]), value=merge.kept[index])]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "0 %"
