"""Gathers everything that a page shows: reads records, draws figures, makes tables. Writes nothing."""

from collections.abc import Sequence
from typing import NamedTuple

from expunge.errors import ExpungeError
from expunge.report.aims import aim
from expunge.report.analysis import Analysis, containment, geometry, neurons, roc
from expunge.report.checks import notices
from expunge.report.claims import Claim, claim
from expunge.report.curves import loss_curves
from expunge.report.disruption import unequal_disruption
from expunge.report.groups import to_go
from expunge.report.ladder import attack_curves, ladder, unequal_budgets
from expunge.report.overview import Overview, overview
from expunge.report.parts import PartsOf, parts_of
from expunge.report.read import RunRecord
from expunge.report.sections import Section, by_distance, place_of, section
from expunge.report.seeds import seed_table
from expunge.report.tables import Table


class Probed(NamedTuple):
    """A probe with its figures."""

    name: str
    analysis: Analysis
    figures: dict[str, str]
    """Word for its file name -> SVG."""


class Contents(NamedTuple):
    """Everything on the page."""

    title: str
    runs: Sequence[RunRecord]
    original: RunRecord | None
    gold: RunRecord | None
    notices: list[str]
    overview: Overview | None
    seeds: Table | None
    """Runs that differ only in their seed."""
    sections: list[Section]
    claims: dict[str, Claim]
    """Run -> what its records support."""
    parts: list[PartsOf]
    curves: str | None
    ladder: str | None
    """What each attack brought back from each attacked run."""
    attack_curves: str | None
    """The same along the steps of relearning, the number of draws, the layers of a probe."""
    rocs: dict[str, str]
    """Guard -> calibration of its threshold."""
    probes: list[Probed]


def gather(
    title: str, made: list[RunRecord], original: RunRecord | None, gold: RunRecord | None, show_forget_text: bool
) -> Contents:
    """Gathers the contents. Suites with a forget task come first; runs are sorted by their distance to gold, in the first
    suite that has both original and gold. Raises ExpungeError if no run has been evaluated."""
    models = [m for m in (original, gold, *made) if m]
    suites = list(dict.fromkeys(e.suite for m in (*made, original, gold) if m for e in m.evaluations))
    if not suites and not any(run.analysis for run in made):
        raise ExpungeError("none of the runs has been evaluated; score them with `expunge evaluate RUN --suite NAME`")
    suites.sort(key=lambda suite: (not aim(suite, models), not to_go(suite, models)))
    if original and gold:
        both = [s for s in suites if original.evaluation(s) and gold.evaluation(s)]
        first = next((found for s in both if (found := aim(s, [gold, original, *made]))), None)
        made = by_distance(made, original, gold, first) if first else made
    references = [(place_of(m, original, gold), m) for m in (original, gold) if m]
    sections = [section(suite, made, original, gold, show_forget_text) for suite in suites]
    parts = [parts_of(run, references, f"part{i}") for i, run in enumerate(made, start=1)]
    thresholds = [(run.name, run.calibration) for run in made if run.calibration]
    probes = [(run.name, run.analysis) for run in made if run.analysis]
    return Contents(
        title=title,
        runs=made,
        original=original,
        gold=gold,
        notices=[*notices(made, original, gold), *unequal_budgets(made), *unequal_disruption(made)],
        overview=overview(sections, made, original, gold),
        seeds=seed_table(sections, made, original, gold),
        sections=sections,
        claims={run.name: claim(run, original, gold) for run in made if run.artifact},
        parts=[found for found in parts if found],
        curves=loss_curves([run for run in made if not run.parts]),
        ladder=ladder(made),
        attack_curves=attack_curves(made),
        rocs={name: roc(found.forget, found.retain, f"{i}-") for i, (name, found) in enumerate(thresholds)},
        probes=[Probed(name, analysis, _drawn(analysis, f"{i}-")) for i, (name, analysis) in enumerate(probes)],
    )


def _drawn(analysis: Analysis, place: str) -> dict[str, str]:
    draw = {"containment": containment, "geometry": geometry, "neurons": neurons}
    return {word: figure(analysis, place) for word, figure in draw.items()}
