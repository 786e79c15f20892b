"""Renders the contents as one self-contained HTML page, without scripts, with anchors to its parts."""

from functools import partial
from pathlib import Path

import jinja2
from markupsafe import Markup

from expunge.report.changes import change_table
from expunge.report.claims import claim_rows
from expunge.report.gather import Contents
from expunge.report.glossary import METRICS, Meaning, meaning
from expunge.report.gold import gold_table
from expunge.report.matrix import heat_map, matrix_table
from expunge.report.page_tables import attack_table, run_table, shared_provenance
from expunge.report.plots import inline
from expunge.report.sections import Section
from expunge.report.tables import breakable, html, with_code


def as_html(page: Contents) -> str:
    """Renders index.html."""
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = with_code
    environment.filters["breakable"] = breakable
    claims, attacks, made = claim_rows(page.claims), attack_table(page.runs), run_table(page.runs, page.claims)
    text: str = environment.get_template("page.html.j2").render(
        **{name: value for name, value in page._asdict().items() if name != "claims"},
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        places=places(page, attacks=bool(attacks), claims=bool(claims), made=bool(made)),
        called=partial(called, alone=len(page.sections) == 1),
        gold_table=gold_table,
        table=html,
        svg=lambda text: Markup(inline(text)),
        heat_map=heat_map,
        matrix_table=matrix_table,
        change_table=change_table,
        meaning=meaning,
        meanings=meanings(page),
        claims=claims,
        attacks=attacks,
        made=made,
        shared=shared_provenance(page.runs),
        configs=[(run.name, run.config) for run in page.runs if run.config],
    )
    return text


def called(section: Section, words: str, *, alone: bool) -> str:
    """Returns a heading within a suite's part of the page; with a single suite, without its name."""
    return words if alone else f"{words} ({section.suite})"


def places(page: Contents, *, attacks: bool, claims: bool, made: bool) -> list[tuple[str, str]]:
    """Returns (anchor, words) of the parts of the page, in order."""
    name = partial(called, alone=len(page.sections) == 1)
    found: list[tuple[object, str, str]] = [(page.overview, "overview-of-all", "All suites at a glance")]
    found.append((page.seeds, "over-seeds", "Over seeds"))
    for s in page.sections:
        others = any(drawn.group.name != "kept" or not s.changes for drawn in s.groups)
        found += [
            (s.summary or s.figure or s.undrawn, f"of-{s.suite}", name(s, "Forgotten and kept")),
            (s.against, f"gold-{s.suite}", name(s, "Can it be told from gold?")),
            (s.matrices, f"matrix-{s.suite}", name(s, "Forget one, keep the others")),
            (s.changes, f"cost-{s.suite}", name(s, "What it cost")),
            (others, f"groups-{s.suite}", name(s, "Group by group")),
            (True, f"scores-{s.suite}", name(s, "Every score")),
        ]
    found += [(True, f"parts-{i}", f"Parts of {part.run}") for i, part in enumerate(page.parts, start=1)]
    found += [(page.curves, "training", "Training"), (page.rocs, "calibration", "Calibration")]
    found += [(True, f"probe-{i}", f"Key space of {probe.name}") for i, probe in enumerate(page.probes, start=1)]
    found += [(s.answers or s.withheld, f"answers-{s.suite}", name(s, "Answers before and after")) for s in page.sections]
    found += [(attacks, "attacked", "Attacks"), (True, "meanings", "What each number means")]
    found += [(claims, "claimed", "What is claimed"), (made, "origin", "Where it comes from")]
    return [(place, words) for there, place, words in found if there]


def meanings(page: Contents) -> list[Meaning]:
    """Returns the metrics that this report shows, in the order of the glossary."""
    models = [m for run in page.runs for m in (run, *run.parts)] + [m for m in (page.original, page.gold) if m]
    shown = {s.metric for m in models for e in m.evaluations for s in e.scores}
    shown |= {score.metric for s in page.sections for e in s.effects.values() for score in e}
    shown |= {metric for s in page.sections if s.against for _, metric in s.against.statistics()}
    shown |= {score.metric for run in page.runs for attack in run.attacks for score in attack.scores}
    shown |= {"relative_drop"} if any(s.matrices for s in page.sections) else set()
    shown |= {"change"} if any(s.changes for s in page.sections) else set()
    order = [*(m for m in METRICS if m in shown), *sorted(shown - METRICS.keys())]
    return [meaning(metric) for metric in order]
