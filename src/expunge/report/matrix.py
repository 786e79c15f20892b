"""Computes and draws the relative drop of each run on each task, as a matrix of forgotten by tested tasks.

    drop = 1 - score after / score before

on the samples that both evaluations have, with paired bootstrap intervals. The diagonal was to be forgotten: near 1 is good.
Everything else was to be kept: near 0 is good, and below 0 the run scores better than the original. This is the form of the
published tables of skill unlearning (arXiv 2503.21730), where drops off the diagonal show how much two skills overlap.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from expunge.errors import ExpungeError
from expunge.records import Score
from expunge.report.glossary import interval, meaning, number, task_label
from expunge.report.groups import TaskMetric
from expunge.report.plots import FORGET, INK, RETAIN, sheet, style, write_svg
from expunge.report.read import RunRecord
from expunge.report.tables import Cell, Column, Table, Tint, score_cell

RESAMPLES = 2000
KNOWLEDGE = frozenset(
    {"probability", "rouge_l_recall", "extraction_strength", "exact_memorization", "accuracy", "accuracy_normalized"}
    | {"exact_match", "f1", "containment", "pass_at_1"}
)
"""Metrics that are high for a model with knowledge and low without, so that a share of them can be lost."""


class MatrixEntry(NamedTuple):
    forgotten: str
    tested: str
    drop: float


class Matrix(NamedTuple):
    suite: str
    columns: tuple[TaskMetric, ...]
    rows: dict[str, tuple[Score, ...]]
    """Forgotten task -> relative drop on each column's task, in the order of the columns."""
    names: dict[str, str]
    """Forgotten task -> name of the run that forgot it."""
    method: str | None = None
    """Method of all rows, if there is a matrix for each of several methods."""

    @property
    def name(self) -> str:
        """Returns the name of its table and figure file."""
        return "-".join([self.suite, *([self.method] if self.method else []), "matrix"])

    def entries(self) -> Iterator[MatrixEntry]:
        """Yields the computed drops."""
        for row, scores in self.rows.items():
            for asked, score in zip(self.columns, scores, strict=True):
                if score.value is not None:
                    yield MatrixEntry(row, asked.task, score.value)

    def sentence(self) -> str:
        """States the two main figures."""
        own = [entry for entry in self.entries() if entry.tested == entry.forgotten]
        others = [entry for entry in self.entries() if entry.tested != entry.forgotten]
        parts = []
        if own:
            least = min(own, key=lambda entry: entry.drop)
            parts.append(f"each forgotten task drops by at least {_percent(least.drop)} ({task_label(least.tested)})")
        if others:
            most = max(others, key=lambda entry: entry.drop)
            where = f"{task_label(most.tested)} when {task_label(most.forgotten)} is forgotten"
            parts.append(f"the largest drop elsewhere is {_percent(most.drop)} ({where})")
        whole = "; ".join(parts) or "no drop can be computed"
        return whole[0].upper() + whole[1:] + "."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-", "−")


def relative_drops(
    original: RunRecord, runs: Mapping[str, RunRecord], suite: str, tasks: Sequence[str] = (), metric: str | None = None
) -> Matrix:
    """Computes the matrix over `runs`: forgotten task -> the run that forgot it.

    tasks    columns; default: the forgotten tasks first, then all others of the suite
    metric   the same for every column; default: the first metric of knowledge that each task was scored with

    Raises ExpungeError for a run without scores or samples of a task.
    """
    if original.evaluation(suite) is None:
        raise ExpungeError(
            f"{original.folder} has no scores of the suite {suite}; make them with `expunge evaluate --suite {suite}`"
        )
    first: dict[str, str] = {}
    for sample in original.samples.get(suite, ()):
        if sample.metric in ({metric} if metric else KNOWLEDGE):
            first.setdefault(sample.task, sample.metric)
    missing = next((task for task in (*runs, *tasks) if task not in first), None)
    if missing is not None:
        found = ", ".join(first) or "none"
        raise ExpungeError(
            f"{original.folder} has no samples of the task {missing} with {metric or 'a metric of knowledge'} in the suite "
            f"{suite}; it has them of {found}"
        )
    columns = tuple(TaskMetric(task, first[task]) for task in (tasks or dict.fromkeys([*runs, *first])))
    rows = {task: tuple(_drop(original, run, suite, asked) for asked in columns) for task, run in runs.items()}
    return Matrix(suite, columns, rows, {task: run.name for task, run in runs.items()})


def forgetting(runs: Sequence[RunRecord], suite: str) -> dict[str, RunRecord]:
    """Returns forgotten task -> run, for runs with low scores good on exactly one task (`--forget TASK`).

    The first run of a task counts; runs that forgot several tasks, or none, are left out.
    """
    found: dict[str, RunRecord] = {}
    for run in runs:
        known = {(sample.task, sample.metric) for sample in run.samples.get(suite, ()) if sample.metric in KNOWLEDGE}
        evaluation = run.evaluation(suite)
        scores = evaluation.scores if evaluation else ()
        gone = {score.task for score in scores if score.higher_is_better is False and (score.task, score.metric) in known}
        if len(gone) == 1:
            found.setdefault(gone.pop(), run)
    return found


def matrices(original: RunRecord, runs: Sequence[RunRecord], suite: str) -> tuple[Matrix, ...]:
    """Returns one matrix for each method whose runs forgot at least two tasks; otherwise one of all runs together, if they did.

    Rows are in the order of the original's tasks; tasks without samples of it are left out.
    """
    tasks = list(dict.fromkeys(sample.task for sample in original.samples.get(suite, ())))
    by_method: dict[str | None, list[RunRecord]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)

    def rows_of(some: Sequence[RunRecord]) -> dict[str, RunRecord]:
        found = forgetting(some, suite)
        return {task: found[task] for task in tasks if task in found}

    found = {method: rows_of(mine) for method, mine in by_method.items()}
    several = {method: rows for method, rows in found.items() if len(rows) > 1}
    if len(several) > 1:
        return tuple(relative_drops(original, rows, suite)._replace(method=method) for method, rows in several.items())
    rows = next(iter(several.values()), None) or rows_of(runs)
    return (relative_drops(original, rows, suite),) if len(rows) > 1 else ()


def _drop(original: RunRecord, run: RunRecord, suite: str, asked: TaskMetric) -> Score:
    before, after = (model.values(suite, asked.task, asked.metric) for model in (original, run))
    shared = sorted(before.keys() & after.keys())
    n = len(shared)
    values_NK = np.array([[before[i], after[i]] for i in shared]).reshape(n, 2)
    if not n or values_NK[:, 0].sum() <= 0:
        reason = "the original scores 0: there is nothing to lose" if n else f"{run.name} and the original share no sample"
        return Score(task=asked.task, metric="relative_drop", value=None, n=n, unscored=reason)
    low = high = None
    draws_RK = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES) @ values_NK
    if n > 1 and (draws_RK[:, 0] > 0).all():
        low, high = (float(q) for q in np.quantile(1 - draws_RK[:, 1] / draws_RK[:, 0], (0.025, 0.975)))
    before_sum, after_sum = values_NK.sum(axis=0)
    return Score(task=asked.task, metric="relative_drop", value=float(1 - after_sum / before_sum), low=low, high=high, n=n)


def matrix_table(matrix: Matrix) -> Table:
    """Makes the table of numbers with intervals: HTML and Markdown by `report.tables`, LaTeX by `report.latex`."""
    titles = [
        Column(task_label(task), True, f"{meaning(metric).label}: {meaning(metric).sentence}") for task, metric in matrix.columns
    ]
    rows = []
    for forgotten, scores in matrix.rows.items():
        cells = [
            score_cell(score, tint=_tint(score, own=asked.task == forgotten), strong=asked.task == forgotten)
            for asked, score in zip(matrix.columns, scores, strict=True)
        ]
        rows.append((Cell(task_label(forgotten)), Cell(matrix.names[forgotten]), *cells))
    caption = "Relative drop against the original, with 95 % intervals: rows were forgotten, columns were tested."
    caption = f"{matrix.method}: {caption[0].lower()}{caption[1:]}" if matrix.method else caption
    return Table(matrix.name, caption, (Column("forgotten"), Column("run"), *titles), tuple(rows))


def _tint(score: Score, *, own: bool) -> Tint | None:
    """Returns the colour, as in the other tables: losing the forgotten task is wanted, losing others is damage."""
    if score.value is None:
        return None
    lost = max(-1.0, min(1.0, score.value))
    return Tint(-lost, "forgotten" if own and lost > 0 else "damage" if own or lost > 0 else "better")


CELL, LEFT, TOP, RIGHT, EDGE = 66, 190, 112, 100, 12
"""Pixels: width of a cell (its height is two thirds), room for the names of rows, of columns, and of the last column."""
COLOURS = LinearSegmentedColormap.from_list("drop", [RETAIN, "#ffffff", FORGET])
WANTED = LinearSegmentedColormap.from_list("wanted", [FORGET, "#ffffff", "#2c7d57"])


def heat_map(matrix: Matrix) -> str:
    """Draws an SVG: rows were forgotten, columns were tested. Forgotten tasks are framed and green; on other tasks losses are
    orange and gains blue."""
    high = CELL * 2 // 3
    width, height = LEFT + CELL * len(matrix.columns) + RIGHT, TOP + high * len(matrix.rows) + EDGE
    hovers: dict[str, str] = {}
    with style():
        figure, axes = sheet(width, height)
        for c, asked in enumerate(matrix.columns):
            x = LEFT + CELL * (c + 0.5)
            axes.text(
                x, TOP - 8, task_label(asked.task), rotation=35, ha="left", va="bottom", rotation_mode="anchor", fontsize=11
            )
        for r, (forgotten, scores) in enumerate(matrix.rows.items()):
            y = TOP + high * r
            axes.text(LEFT - 10, y + high / 2, task_label(forgotten), ha="right", va="center", fontsize=11.5)
            for c, (asked, score) in enumerate(zip(matrix.columns, scores, strict=True)):
                own = asked.task == forgotten
                gid = f"cell-{r}-{c}"
                hovers[gid] = _said(forgotten, asked, score)
                scale = WANTED if own else COLOURS
                colour = "#f1f3f5" if score.value is None else scale((max(-1.0, min(1.0, score.value)) + 1) / 2)
                box = Rectangle((LEFT + CELL * c + 1, y + 1), CELL - 2, high - 2, facecolor=colour, linewidth=2 if own else 0)
                box.set_edgecolor(INK if own else "none")
                box.set_gid(gid)
                axes.add_patch(box)
                text = "–" if score.value is None else number("relative_drop", score.value)
                ink = "#ffffff" if score.value is not None and score.value > 0.75 else INK
                weight = "bold" if own else "normal"
                x = LEFT + CELL * (c + 0.5)
                axes.text(x, y + high / 2, text, ha="center", va="center", fontsize=11.5, color=ink, fontweight=weight)
        return write_svg(figure, matrix.name, "Relative drop: forgotten tasks by tested tasks", hovers)


def _said(forgotten: str, asked: TaskMetric, score: Score) -> str:
    start = f"{task_label(forgotten)} forgotten, {task_label(asked.task)} tested ({meaning(asked.metric).label}): "
    if score.value is None:
        return start + (score.unscored or "")
    between = interval("relative_drop", score.low, score.high)
    return f"{start}drop {number('relative_drop', score.value)}{f' ({between})' if between else ''}, n = {score.n}"
