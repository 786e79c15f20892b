"""Writes the report in other formats: Markdown, LaTeX, JSON and SVG."""

import re
from typing import Any

from expunge.records import Record, Score
from expunge.report.claims import claim_rows
from expunge.report.gather import Contents
from expunge.report.latex import latex
from expunge.report.matrix import heat_map
from expunge.report.page_tables import attack_table, run_table, shared_provenance
from expunge.report.read import RunRecord
from expunge.report.sections import place_of
from expunge.report.tables import Table, markdown, markdown_escape

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
    """For each suite: what was forgotten and what was kept."""
    verdicts: dict[str, str]
    """suite -> verdict against gold."""
    scores: dict[str, tuple[Score, ...]]
    """suite -> scores."""


def as_markdown(page: Contents) -> str:
    """Makes report.md: every table, the claims and their origins. Names are escaped, since they may hold anything."""
    said = markdown_escape
    lines = [f"# {said(page.title)}", "", *(f"> {said(text)}  " for text in page.notices), *([""] if page.notices else [])]
    lines += ["## All suites at a glance", "", markdown(page.overview.table)] if page.overview else []
    lines += ["## Over seeds", "", markdown(page.seeds)] if page.seeds else []
    for s in page.sections:
        words = " ".join(text for text in s.headline if text)
        lines += [f"## Scores: {said(s.suite)}", "", said(words), "", *(markdown(table) for table in s.tables())]
    for p in page.parts:
        merged = [said(p.merged), ""] if p.merged else []
        lines += [f"## Parts of {said(p.run)}", "", *merged, *(markdown(table) for table in p.tables())]
    made = [table for table in (attack_table(page.runs), run_table(page.runs, page.claims)) if table]
    lines += ["## Runs", "", *(markdown(table) for table in made)] if made else []
    for c in claim_rows(page.claims):
        lines.append(f"- **{c['level']}** ({said(c['runs'])}): {c['says']} Not claimed: {c['not']} Rests on: {said(c['why'])}.")
    lines += ["", *(f"- {label}: {said(text)}" for label, text in shared_provenance(page.runs))]
    return "\n".join(lines).rstrip() + "\n"


def as_latex(page: Contents) -> str:
    """Makes table.tex: the tables of scores, one float each."""
    tables: list[Table] = [*([page.overview.table] if page.overview else []), *([page.seeds] if page.seeds else [])]
    tables += [table for s in page.sections for table in s.tables()] + [table for p in page.parts for table in p.tables()]
    if attacks := attack_table(page.runs):
        tables.append(attacks)
    return "% \\usepackage{booktabs}\n\n" + "\n".join(latex(table) for table in tables)


def as_json(page: Contents) -> dict[str, Any]:
    """Makes report.json: every score of every model as a record; parts are models called RUN/VALUE."""
    models = [m for m in (page.original, page.gold, *page.runs) if m]
    rows = [_scores(m, place_of(m, page.original, page.gold), m.name, page) for m in models]
    rows += [_scores(part, "part", f"{r.name}/{part.name}", page) for r in page.runs for part in r.parts if part.evaluations]
    return {"format": FORMAT, "title": page.title, "notices": page.notices, "models": rows}


def _scores(model: RunRecord, as_what: str, name: str, page: Contents) -> dict[str, Any]:
    effects = [e for s in page.sections if name in s.effects for e in s.effects[name]]
    row = RunScores(
        name=name,
        role=as_what,
        method=model.method,
        family=model.family,
        claim=page.claims[name].shown if name in page.claims else None,
        effects=tuple(effects),
        verdicts={s.suite: s.against.verdicts[name].words for s in page.sections if s.against and name in s.against.verdicts},
        scores={e.suite: e.scores for e in model.evaluations},
    )
    return row.model_dump(mode="json")


def figures(page: Contents) -> dict[str, str]:
    """Returns file name -> SVG. Run names are converted to valid file names."""
    found = {f"{s.suite}-tradeoff": s.figure for s in page.sections if s.figure}
    found |= {f"{s.suite}-quality": s.quality for s in page.sections if s.quality}
    found |= page.overview.figures if page.overview else {}
    found |= {matrix.name: heat_map(matrix) for s in page.sections for matrix in s.matrices}
    found |= {f"{s.suite}-{drawn.group.name}": drawn.figure for s in page.sections for drawn in s.groups}
    found |= {"curves": page.curves} if page.curves else {}
    found |= {"ladder": page.ladder} if page.ladder else {}
    found |= {"attack-curves": page.attack_curves} if page.attack_curves else {}
    found |= {f"{name}-calibration": figure for name, figure in page.rocs.items()}
    found |= {f"{probe.name}-{word}": figure for probe in page.probes for word, figure in probe.figures.items()}
    for p in page.parts:
        found |= {f"{p.run}-parts-curves": p.curves} if p.curves else {}
        found |= {f"{p.run}-parts-{s.suite}-{d.group.name}": d.figure for s in p.scores for d in s.groups}
    return {re.sub(r"[^\w.-]+", "-", name) + ".svg": svg for name, svg in found.items()}
