"""One suite's part of the page: headline, summary, figure, every score, sample answers."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from expunge.report.answers import AnswerSet, answer_sets, withheld
from expunge.report.contents import lab_table, score_table, suite_summary
from expunge.report.effects import SUITE, forget_effect, retain_kept
from expunge.report.headline import lab_headline, suite_headline
from expunge.report.matrix import Matrix, matrices
from expunge.report.read import RunRecord
from expunge.report.tables import Table
from expunge.report.tradeoff import Point, drawable, lab_tradeoff, quality_tradeoff

Role = Literal["original", "gold", "method"]


class Section(NamedTuple):
    """One suite's part of the page."""

    suite: str
    lab: bool
    headline: tuple[str, str]
    summary: Table
    figure: str | None
    undrawn: dict[str, str]
    scores: Table
    answers: list[AnswerSet]
    withheld: bool
    matrices: tuple[Matrix, ...] = ()
    """Forgotten by tested tasks, where two runs or more of a method forgot different tasks."""


def section(
    suite: str, runs: Sequence[RunRecord], original: RunRecord | None, gold: RunRecord | None, show_forget_text: bool
) -> Section:
    references = [m for m in (original, gold) if m and m.evaluation(suite)]
    evaluated = [run for run in runs if run.evaluation(suite)]
    models = [*references, *evaluated]
    scores = score_table(suite, models, original)
    answers, hidden = answer_sets(suite, models, show_forget_text), withheld(suite, models, show_forget_text)
    drops = matrices(original, evaluated, suite) if original and original.evaluation(suite) else ()
    if suite == SUITE and original and gold and len(references) == 2:
        points = [
            Point(
                m.name,
                role(m, original, gold),
                m.family or "training",
                forget_effect(m, original, gold),
                retain_kept(m, original),
            )
            for m in models
        ]
        drawn, undrawn = drawable(points)
        figure = lab_tradeoff(drawn)
        summary = lab_table(evaluated, original, gold)
        headline = lab_headline(evaluated, original, gold)
        return Section(suite, True, headline, summary, figure, undrawn, scores, answers, hidden, drops)
    drawn, undrawn = drawable(_quality_points(suite, models, original, gold))
    general = quality_tradeoff(drawn, suite) if drawn else None
    summary = suite_summary(suite, models, len(references))
    headline = suite_headline(suite, evaluated, original)
    return Section(suite, False, headline, summary, general, undrawn, scores, answers, hidden, drops)


def role(model: RunRecord, original: RunRecord | None, gold: RunRecord | None) -> Role:
    return "original" if model is original else "gold" if model is gold else "method"


def _quality_points(suite: str, models: Sequence[RunRecord], original: RunRecord | None, gold: RunRecord | None) -> list[Point]:
    """Models for which the suite asks for both model_utility and forget_quality, computed or not."""
    points = []
    for m in models:
        utility, quality = m.score(suite, "suite", "model_utility"), m.score(suite, "suite", "forget_quality")
        if utility and quality:
            points.append(Point(m.name, role(m, original, gold), m.family or "training", utility, quality))
    return points


def by_distance(runs: Sequence[RunRecord], original: RunRecord, gold: RunRecord) -> list[RunRecord]:
    """Nearest to gold first, in the plane of the trade-off figure; runs that were not scored come last."""
    target = retain_kept(gold, original).value or 1.0

    def distance(run: RunRecord) -> float:
        effect, kept = forget_effect(run, original, gold).value, retain_kept(run, original).value
        return float("inf") if effect is None or kept is None else float((effect - 1) ** 2 + (kept - target) ** 2)

    return sorted(runs, key=distance)
