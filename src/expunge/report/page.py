"""Writes a report: the HTML page and its machine-readable files. Everything is read and drawn before anything is written."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError
from expunge.folders import check_apart, check_place, holds_something
from expunge.records import json_text, write_together
from expunge.report.effects import SUITE, LabSummary, summarize_lab
from expunge.report.files import as_json, as_latex, as_markdown, figures
from expunge.report.gather import gather
from expunge.report.read import RunRecord, read_run, read_runs
from expunge.report.render import as_html

TWINS = ("index.html", "report.md", "table.tex", "summary.json")
"""Files that a report writes beside report.json, whose presence shows that they belong to it."""


def report(
    runs: Sequence[Path | str],
    out: Path | str,
    *,
    title: str | None = None,
    original: Path | str | None = None,
    gold: Path | str | None = None,
    seed: int | None = None,
    seconds: float | None = None,
    show_forget_text: bool = False,
    overwrite: bool = False,
) -> Path:
    """Writes one report over any number of runs and returns the path of its page.

    runs               folders of runs; a folder without training that is called `original` or `gold` is taken as that model if
                       the next two are not given
    out                gets index.html (self-contained), report.md, table.tex, report.json, the figures as SVG, and for
                       the lab with both reference models summary.json
    title              heading of the page
    original, gold     folders with the evaluation of the model before unlearning, and of one that never saw the forget set
    seed, seconds      for summary.json; default: the runs' common seed, and the time that their provenance adds up to
    show_forget_text   quote texts of the forget set, if the samples contain them
    overwrite          write into a folder that is not empty

    Raises ExpungeError before anything is written for a missing or broken file, or if there are no scores.
    """
    out = Path(out)
    if not runs:
        raise ExpungeError("no run was given; name at least one folder that `expunge unlearn` or `expunge evaluate` wrote")
    check_place(out)
    check_apart(out, [*runs, *(place for place in (original, gold) if place is not None)], also=("report",))
    if not overwrite and holds_something(out):
        raise ExpungeError(f"{out} exists; give another folder for the report, or overwrite it")
    if overwrite and (taken := [name for name in TWINS if (out / name).exists()]) and not (out / "report.json").is_file():
        raise ExpungeError(f"{out / taken[0]} is not a report of expunge, so it is not overwritten; give another folder")
    made, before, never = _read([Path(r) for r in runs], original, gold)
    page = gather(title or "What was forgotten, and what it cost", made, before, never, show_forget_text)
    for notice in page.notices:
        warnings.warn(notice, UserWarning, stacklevel=2)
    files = {"index.html": as_html(page), "report.md": as_markdown(page), "table.tex": as_latex(page), **figures(page)}
    summary = None
    if before and never and any(s.suite == SUITE for s in page.sections):
        summary = summarize_lab(made, before, never, _seed(made, seed), _seconds(made, seconds))
    _write(out, files, as_json(page), summary)
    return out / "index.html"


def _read(
    folders: Sequence[Path], original: Path | str | None, gold: Path | str | None
) -> tuple[list[RunRecord], RunRecord | None, RunRecord | None]:
    """Returns (runs, original, gold); the reference models get these names, whatever their folders are called."""
    given = {"original": original, "gold": gold}
    resolved = {Path(path).resolve() for path in given.values() if path is not None}
    records = read_runs([folder for folder in folders if folder.resolve() not in resolved], [n for n, p in given.items() if p])
    found: dict[str, RunRecord | None] = {}
    for name, path in given.items():
        if path is not None:
            found[name] = read_run(Path(path), name)
        else:
            found[name] = next((r for r in records if r.name == name and r.artifact is None), None)
    made = [r for r in records if not any(r is other for other in found.values())]
    return made, found["original"], found["gold"]


def _seed(runs: Sequence[RunRecord], seed: int | None) -> int | None:
    seeds = {run.provenance.seed for run in runs if run.provenance}
    return seed if seed is not None else seeds.pop() if len(seeds) == 1 else None


def _seconds(runs: Sequence[RunRecord], seconds: float | None) -> float | None:
    spent = [run.provenance.wall_seconds for run in runs if run.provenance]
    return seconds if seconds is not None else round(sum(spent), 3) if spent else None


def _write(out: Path, files: dict[str, str], machine: dict[str, Any], summary: LabSummary | None) -> None:
    """Writes all files together, the page last."""
    more = {"report.json": json_text(machine)} | ({} if summary is None else {"summary.json": json_text(summary)})
    texts = {name: text for name, text in files.items() if name != "index.html"} | more
    write_together({out / name: text for name, text in [*texts.items(), ("index.html", files["index.html"])]})
