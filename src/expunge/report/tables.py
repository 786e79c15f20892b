"""Defines tables, and formats them as HTML and Markdown (`latex.py`: as LaTeX).

A value is shown with its interval; a missing value is a dash with a footnote that says why.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from markupsafe import Markup, escape

from expunge.records import Score
from expunge.report.glossary import interval, number

DASH = "–"
DENSE = 11
"""Tables with more columns are set in smaller type."""
SUPERSCRIPT_RUN = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
NORMAL_DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


class Tint(NamedTuple):
    """The colour of a cell: the change from the original's score, and what it means on its task."""

    change: float
    """From -1 to 1."""
    kind: Literal["damage", "forgotten", "better", "moved"]
    """damage: away from its goal; forgotten: a forget score that falls; better: any other move towards its goal; moved: no
    goal."""


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    interval: str | None = None
    value: float | None = None
    """The number behind `text`, unrounded."""
    note: str | None = None
    """Why there is no value, or what the value is not of."""
    tint: Tint | None = None
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    numeric: bool = False
    explanation: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; the first `stub` columns name the row, and equal first names are written once."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    stub: int = 1
    apart: int = 0
    """Number of rows at the top (original and gold) that are set off from the others."""

    def notes(self) -> dict[str, int]:
        """Returns reason -> number of its footnote, in order of appearance."""
        return {note: i for i, note in enumerate(dict.fromkeys(c.note for row in self.rows for c in row if c.note), start=1)}

    def opens_group(self, index: int) -> bool:
        return self.stub < 2 or index == 0 or self.rows[index][0].text != self.rows[index - 1][0].text

    def group_size(self, index: int) -> int:
        later = (i for i in range(index + 1, len(self.rows)) if self.opens_group(i))
        return next(later, len(self.rows)) - index


def score_cell(score: Score | None, *, tint: Tint | None = None, strong: bool = False) -> Cell:
    """Makes a cell of a score with its interval, or a dash with the reason."""
    if score is None:
        return Cell(DASH, note="not part of this run's evaluation")
    if score.value is None:
        return Cell(DASH, note=score.unscored)
    text = number(score.metric, score.value)
    said = "; ".join(score.remarks()) or None
    return Cell(text, interval(score.metric, score.low, score.high), score.value, said, tint=tint, strong=strong)


def html(table: Table) -> Markup:
    """Formats a <table>; every number has its full value in `data-value`."""
    notes = table.notes()
    head = "".join(_html_head(table, column) for column in table.columns)
    body = "".join(_html_row(table, i, notes) for i in range(len(table.rows)))
    feet = "".join(f"<li>{with_code(note)}</li>" for note in notes)
    kinds = (("tasks", table.stub > 1), ("narrow", len(table.columns) < 4), ("dense", len(table.columns) > DENSE))
    kind = f" class='{' '.join(name for name, wanted in kinds if wanted)}'" if any(wanted for _, wanted in kinds) else ""
    foot = f"<ol class='notes'>{feet}</ol>" if feet else ""
    return Markup(
        f"<p class='caption' id='{escape(table.name)}-caption'>{escape(table.caption)}</p>"
        f"<div class='scroll'><table id='{escape(table.name)}' aria-describedby='{escape(table.name)}-caption'{kind}>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{foot}"
    )


def _html_head(table: Table, column: Column) -> str:
    classes, width = "", ""
    if column.numeric:
        classes = " class=number"
        if table.stub > 1:  # the same measure for every model, so that the eye can run across
            numbers = len(table.columns) - table.stub
            width = f" style='width:{(72 if numbers > 3 else 60) / numbers:.2f}%'"
    title = f" title='{escape(column.explanation)}'" if column.explanation else ""
    return f"<th scope='col'{classes}{title}{width}>{breakable(column.title)}</th>"


def _html_row(table: Table, index: int, notes: dict[str, int]) -> str:
    opens = table.opens_group(index)
    cells = []
    for place, (cell, column) in enumerate(zip(table.rows[index], table.columns, strict=True)):
        if place == 0 and not opens:
            continue
        if place < table.stub:
            span = f" rowspan={table.group_size(index)}" if place == 0 and table.stub > 1 else ""
            cells.append(f"<th scope='row'{span}>{_html_cell(cell, notes)}</th>")
        else:
            classes = " ".join(name for name, wanted in (("number", column.numeric), ("strong", cell.strong)) if wanted)
            value = "" if cell.value is None else f" data-value='{cell.value!r}'"
            cells.append(f"<td{f' class={classes!r}' if classes else ''}{value}{_tint(cell.tint)}>{_html_cell(cell, notes)}</td>")
    kinds = (("reference", index < table.apart), ("last", index == table.apart - 1), ("group", opens and table.stub > 1))
    classes = " ".join(name for name, wanted in kinds if wanted)
    return f"<tr{f' class={classes!r}' if classes else ''}>{''.join(cells)}</tr>"


def _html_cell(cell: Cell, notes: dict[str, int]) -> str:
    below = f"<small>{escape(cell.interval)}</small>" if cell.interval else ""
    if cell.note:
        return f"<abbr title='{escape(cell.note)}'>{escape(cell.text)}</abbr><sup>{notes[cell.note]}</sup>{below}"
    return f"{breakable(cell.text)}{below}"


def breakable(text: str) -> Markup:
    """Lets long names break after an underscore, and sets exponents by markup."""
    parts = str(escape(text)).replace("_", "_<wbr>")
    return Markup(SUPERSCRIPT_RUN.sub(lambda m: f"<sup class=power>{normal(m.group()).replace('-', '−')}</sup>", parts))


def normal(superscripts: str) -> str:
    return superscripts.translate(NORMAL_DIGITS)


def with_code(text: str) -> Markup:
    """Escapes a text, sets `commands` in backticks as code, and keeps per cent signs with their numbers."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))).replace(" %", "\u00a0%"))


TINTS = {"damage": "230,145,56", "forgotten": "52,150,105", "better": "61,133,198", "moved": "130,138,146"}
"""Orange, green, blue and grey, which differ in lightness too and are distinguishable with colour blindness; dark text is
readable on all."""


def tint_of(change: float | None, score: Score | None) -> Tint | None:
    """Returns the colour of a change by the role of its task: losing forget tasks is wanted, losing retain tasks is damage."""
    if change is None or score is None:
        return None
    if score.higher_is_better is None:
        return Tint(change, "moved")
    good = (change > 0) == score.higher_is_better
    return Tint(change, "damage" if not good else "forgotten" if score.role == "forget" else "better")


def _tint(tint: Tint | None) -> str:
    if tint is None or abs(tint.change) < 0.005:
        return ""
    return f" style='background:rgba({TINTS[tint.kind]},{min(abs(tint.change), 1) ** 0.7 * 0.75:.2f})'"


def markdown(table: Table) -> str:
    """Formats a GitHub table with its caption above and the footnotes below."""
    notes = table.notes()

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def text(cell: Cell) -> str:
        plain = markdown_escape(cell.text) + (f" [{notes[cell.note]}]" if cell.note else "")
        return f"{plain} ({cell.interval})" if cell.interval else plain

    head = [
        line([markdown_escape(c.title) for c in table.columns]),
        line(["---:" if c.numeric else ":---" for c in table.columns]),
    ]
    rows = [line([text(c) for c in row]) for row in table.rows]
    feet = [f"[{i}] {markdown_escape(note)}  " for note, i in notes.items()]
    return "\n".join([f"**{markdown_escape(table.caption)}**", "", *head, *rows, *(["", *feet] if feet else []), ""])


def markdown_escape(text: str) -> str:
    """Escapes names and texts for Markdown."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", text).replace("\n", " ")
