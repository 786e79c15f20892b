"""Formats a table as LaTeX floats that fit on a page, with the package booktabs only."""

import re
from collections.abc import Sequence
from textwrap import wrap

from expunge.report.tables import SUPERSCRIPT_RUN, Cell, Column, Table, normal

WIDE = 2
"""With more numbers in a row, intervals are set below their values in smaller type."""
PAGE, LETTER, SMALL, GAP = 480, 4.5, 3.9, 7
"""Points: an A4 page between its margins, a letter of \\footnotesize, one of \\scriptsize, the gap between columns."""


def latex(table: Table) -> str:
    """Formats a floating table; what does not fit on a page continues in further floats."""
    stub = sum(_width(table, i) for i in range(table.stub))
    chunks: list[list[int]] = [[]]
    used = stub
    for i in range(table.stub, len(table.columns)):
        used += _width(table, i)
        if used > PAGE and chunks[-1]:
            chunks.append([])
            used = stub + _width(table, i)
        chunks[-1].append(i)
    return "\n".join(_float(table, chunk, number) for number, chunk in enumerate(chunks))


def _width(table: Table, place: int) -> float:
    """Estimates the width of a column."""
    cells = [row[place] for row in table.rows]
    if _column(table, place, True).startswith("p"):
        return 68 + GAP
    heads = _head_lines(table.columns[place], True)
    longest = max([len(cell.text) for cell in cells] + [len(line) for line in heads])
    return max(LETTER * longest, SMALL * max((len(cell.interval or "") for cell in cells), default=0)) + GAP


def _float(table: Table, places: Sequence[int], number: int) -> str:
    notes, shown = table.notes(), [*range(table.stub), *places]
    wide = sum(column.numeric for column in table.columns) > WIDE
    mentioned = {row[i].note for row in table.rows for i in shown}
    lines = []
    for r, row in enumerate(table.rows):
        lines += _rule(table, r, wide) if r else []
        first = _cell(row[0], notes, wide) if table.opens_group(r) else ""
        lines.append(" & ".join([first, *(_cell(row[i], notes, wide) for i in shown[1:])]) + " \\\\")
    feet = " ".join(f"$^{{{i}}}$ {_escape(note)}." for note, i in notes.items() if note in mentioned)
    caption = _escape(table.caption) + (" (continued)" if number else "")
    return "\n".join(
        [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{caption}}}",
            f"\\label{{tab:{_label(table.name)}{f'-{number}' if number else ''}}}",
            *(["\\footnotesize", "\\setlength{\\tabcolsep}{3.5pt}"] if wide else []),
            "\\begin{tabular}{" + "".join(_column(table, i, wide) for i in shown) + "}",
            "\\toprule",
            " & ".join(_head(table.columns[i], wide) for i in shown) + " \\\\",
            "\\midrule",
            *lines,
            "\\bottomrule",
            "\\end{tabular}",
            *([f"\\par\\smallskip\\footnotesize {feet}"] if feet else []),
            "\\end{table}",
            "",
        ]
    )


def _label(name: str) -> str:
    """Converts a name to a LaTeX label of letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9:.]+", "-", name).strip("-")


def _rule(table: Table, index: int, wide: bool) -> list[str]:
    """Returns what is above a row: a rule after the references and around groups of several rows, otherwise a small space if
    intervals are below their values."""
    opens = table.stub > 1 and table.opens_group(index)
    if index == table.apart or (opens and (table.group_size(index) > 1 or not table.opens_group(index - 1))):
        return ["\\midrule"]
    return ["\\addlinespace[2pt]"] if wide else []


def _column(table: Table, place: int, wide: bool) -> str:
    if table.columns[place].numeric:
        return "r"
    return "l" if place < table.stub or not wide else "p{2.4cm}"


def _head_lines(column: Column, wide: bool) -> list[str]:
    """Breaks a long title between words and after underscores."""
    if not wide or not column.numeric:
        return [column.title]
    lines = wrap(column.title.replace("_", "_\0 "), 14, break_long_words=False)
    return [line.replace("\0 ", "").replace("\0", "") for line in lines]


def _head(column: Column, wide: bool) -> str:
    return _stack([_escape(line) for line in _head_lines(column, wide)], "b")


def _cell(cell: Cell, notes: dict[str, int], wide: bool) -> str:
    plain = _escape(cell.text) + (f"$^{{{notes[cell.note]}}}$" if cell.note else "")
    if not cell.interval:
        return plain
    small = _escape(cell.interval)
    return _stack([plain, f"{{\\scriptsize {small}}}"], "t") if wide else f"{plain} {{\\scriptsize ({small})}}"


def _stack(lines: Sequence[str], where: str) -> str:
    """Sets lines one below the other in one cell, without a package."""
    return (
        lines[0] if len(lines) == 1 else f"\\begin{{tabular}}[{where}]{{@{{}}r@{{}}}}" + " \\\\ ".join(lines) + "\\end{tabular}"
    )


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "−": "$-$", "·": r"$\cdot$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "→": r"$\rightarrow$", "≥": r"$\geq$", "≤": r"$\leq$", "…": r"\dots{}", "\u00a0": "~",
    "<": "$<$", ">": "$>$",
}  # fmt: skip


def _escape(text: str) -> str:
    """Escapes special characters, sets `commands` as code, and keeps two hyphens from becoming a dash."""
    plain = "".join(LATEX.get(c, c) for c in re.sub("-(?=-)", "-\0", text)).replace("\0", "{}")
    plain = re.sub("`([^`]+)`", r"\\texttt{\1}", plain)
    return SUPERSCRIPT_RUN.sub(lambda m: f"$^{{{normal(m.group())}}}$", plain)
