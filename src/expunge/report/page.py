"""Runs -> one page and its machine-readable twins. Everything is read and drawn before the first byte is written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from expunge.errors import ExpungeError
from expunge.records import Record, Score, write_json, write_text
from expunge.report.analysis import roc
from expunge.report.contents import attack_table, claim_rows, run_table, shared_provenance
from expunge.report.curves import loss_curves
from expunge.report.effects import SUITE, LabSummary, forget_effect, retain_kept, summarize_lab
from expunge.report.glossary import METRICS, Meaning, meaning
from expunge.report.matrix import heat_map, matrix_table
from expunge.report.plots import inline
from expunge.report.read import RunRecord, read_run, read_runs
from expunge.report.sections import Section, by_distance, role, section
from expunge.report.tables import Table, html, latex, markdown, with_code

FORMAT = 1
"""Version of report.json."""


class RunScores(Record):
    """One model in report.json."""

    name: str
    role: str
    method: str | None
    family: str | None
    claim: str | None
    effects: tuple[Score, ...]
    """forget_effect and retain_kept, in the lab."""
    scores: dict[str, tuple[Score, ...]]
    """suite -> scores."""


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

    runs               folders of runs; among them a folder without training that is called `original` or `gold` is taken for
                       that model where the next two are not given
    out                gets index.html (self-contained), report.md, table.tex, report.json, the figures as SVG, and for
                       the lab with both reference models summary.json
    original, gold     folders with the evaluation of the model before unlearning, and of one that never saw the forget set
    seed, seconds      for summary.json; default: the runs' common seed, and the time that their provenance adds up to
    show_forget_text   quote forget-set texts of suites other than the lab, where the samples hold them
    overwrite          write into a folder that holds something already

    Raises ExpungeError, one sentence, before anything is written: a missing or broken file, or no scores at all.
    """
    out = Path(out)
    if not runs:
        raise ExpungeError("no run was given; name at least one folder that `expunge unlearn` or `expunge evaluate` wrote")
    if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExpungeError(f"{out} exists; give another folder for the report, or overwrite it")
    made, before, never = _read([Path(r) for r in runs], original, gold)
    suites = list(dict.fromkeys(e.suite for m in (*made, before, never) if m for e in m.evaluations))
    if not suites:
        raise ExpungeError("none of the runs has been evaluated; score them with `expunge evaluate RUN --suite NAME`")
    suites.sort(key=lambda s: s != SUITE)
    if before and never and SUITE in suites:
        made = by_distance(made, before, never)
    sections = [section(suite, made, before, never, show_forget_text) for suite in suites]
    curves = loss_curves(made)
    figures = {f"{'' if s.lab else s.suite + '-'}tradeoff.svg": s.figure for s in sections if s.figure}
    figures |= {f"{matrix.name}.svg": heat_map(matrix) for s in sections for matrix in s.matrices}
    if curves:
        figures["curves.svg"] = curves
    rocs = {run.name: roc(run.calibration.forget, run.calibration.retain) for run in made if run.calibration}
    figures |= {f"{name}-calibration.svg": figure for name, figure in rocs.items()}
    heading = title or "What was forgotten, and what it cost"
    files = {
        "index.html": _page(heading, sections, made, before, never, curves, rocs),
        "report.md": _markdown(heading, sections, made),
        "table.tex": "\n".join(latex(table) for s in sections for table in _tables(s)),
        **figures,
    }
    summary = None
    if before and never and SUITE in suites:
        summary = summarize_lab(_as_given(made, runs), before, never, _seed(made, seed), _seconds(made, seconds))
    _write(out, files, _machine(heading, made, before, never), summary)
    return out / "index.html"


def _read(
    folders: Sequence[Path], original: Path | str | None, gold: Path | str | None
) -> tuple[list[RunRecord], RunRecord | None, RunRecord | None]:
    """(runs, original, gold); the reference models go by these names whatever their folders are called."""
    given = {"original": original, "gold": gold}
    resolved = {Path(path).resolve() for path in given.values() if path is not None}
    records = read_runs([folder for folder in folders if folder.resolve() not in resolved])
    found: dict[str, RunRecord | None] = {}
    for name, path in given.items():
        if path is not None:
            found[name] = read_run(Path(path), name)
        else:
            found[name] = next((r for r in records if r.name == name and r.artifact is None), None)
    made = [r for r in records if r not in found.values()]
    return made, found["original"], found["gold"]


def _as_given(runs: Sequence[RunRecord], folders: Sequence[Path | str]) -> list[RunRecord]:
    order = [Path(folder).resolve() for folder in folders]
    return sorted(runs, key=lambda run: order.index(run.folder.resolve()))


def _tables(section: Section) -> list[Table]:
    return [section.summary, section.scores, *map(matrix_table, section.matrices)]


def _page(
    title: str,
    sections: Sequence[Section],
    runs: Sequence[RunRecord],
    original: RunRecord | None,
    gold: RunRecord | None,
    curves: str | None,
    rocs: Mapping[str, str],
) -> str:
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = with_code
    attacks, made = attack_table(runs), run_table(runs)
    page: str = environment.get_template("page.html.j2").render(
        title=title,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        sections=sections,
        table=html,
        svg=lambda text: Markup(inline(text)),
        heat_map=heat_map,
        matrix_table=matrix_table,
        curves=curves,
        rocs=rocs,
        meanings=meanings(sections, runs, [m for m in (original, gold) if m]),
        claims=claim_rows(runs),
        attacks=attacks,
        runs=made,
        shared=shared_provenance(runs),
        configs=[(run.name, run.config) for run in runs if run.config],
    )
    return page


def meanings(sections: Sequence[Section], runs: Sequence[RunRecord], references: Sequence[RunRecord]) -> list[Meaning]:
    """The metrics that this report shows, in the order of the glossary."""
    shown = {s.metric for m in (*runs, *references) for e in m.evaluations for s in e.scores}
    if any(s.lab for s in sections):
        shown |= {"forget_effect", "retain_kept"}
    if any(s.matrices for s in sections):
        shown.add("relative_drop")
    order = [*(m for m in METRICS if m in shown), *sorted(shown - METRICS.keys())]
    return [meaning(metric) for metric in order]


def _markdown(title: str, sections: Sequence[Section], runs: Sequence[RunRecord]) -> str:
    parts = [f"# {title}", ""]
    for s in sections:
        said = " ".join(text for text in s.headline if text)
        parts += [f"## Suite {s.suite}", "", said, "", *(markdown(table) for table in _tables(s))]
    parts += [f"- **{c['level']} {c['name']}** ({c['runs']}): {c['says']} Not claimed: {c['not']}" for c in claim_rows(runs)]
    parts += ["", *(f"- {label}: {text}" for label, text in shared_provenance(runs))]
    return "\n".join(parts).rstrip() + "\n"


def _machine(title: str, runs: Sequence[RunRecord], original: RunRecord | None, gold: RunRecord | None) -> dict[str, Any]:
    """report.json: every score of every model as a record."""
    models = [m for m in (original, gold, *runs) if m]
    rows = []
    for m in models:
        effects: tuple[Score, ...] = ()
        if original and gold and m.evaluation(SUITE):
            effects = (forget_effect(m, original, gold), retain_kept(m, original))
        row = RunScores(
            name=m.name,
            role=role(m, original, gold),
            method=m.method,
            family=m.family,
            claim=m.artifact.claim if m.artifact else None,
            effects=effects,
            scores={e.suite: e.scores for e in m.evaluations},
        )
        rows.append(row.model_dump(mode="json"))
    return {"format": FORMAT, "title": title, "models": rows}


def _seed(runs: Sequence[RunRecord], seed: int | None) -> int | None:
    seeds = {run.provenance.seed for run in runs if run.provenance}
    return seed if seed is not None else seeds.pop() if len(seeds) == 1 else None


def _seconds(runs: Sequence[RunRecord], seconds: float | None) -> float | None:
    spent = [run.provenance.wall_seconds for run in runs if run.provenance]
    return seconds if seconds is not None else round(sum(spent), 3) if spent else None


def _write(out: Path, files: dict[str, str], machine: dict[str, Any], summary: LabSummary | None) -> None:
    """The page last: where it is, the rest is too."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        if name != "index.html":
            write_text(out / name, text)
    write_json(out / "report.json", machine)
    if summary is not None:
        write_json(out / "summary.json", summary)
    write_text(out / "index.html", files["index.html"])
