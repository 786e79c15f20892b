"""One suite's part of the page: headline, summary, figures, every score, what it cost, sample answers."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from expunge.report.answers import AnswerSet, answer_sets, withheld
from expunge.report.changes import Changes, change_table, changes
from expunge.report.checks import apart
from expunge.report.contents import lab_table, score_table, suite_summary
from expunge.report.effects import SUITE, forget_effect, forgot_instead, retain_kept
from expunge.report.glossary import task_label
from expunge.report.groups import groups
from expunge.report.headline import drops, lab_headline, plain_headline, suite_headline
from expunge.report.matrix import Matrix, matrices, matrix_table
from expunge.report.radar import Drawn, draw_groups
from expunge.report.read import RunRecord
from expunge.report.tables import Table
from expunge.report.tradeoff import Point, drawable, lab_tradeoff, quality_tradeoff

Role = Literal["original", "gold", "method"]


class Section(NamedTuple):
    """One suite's part of the page."""

    suite: str
    lab: bool
    headline: tuple[str, str]
    summary: Table | None
    figure: str | None
    undrawn: dict[str, str]
    scores: Table
    answers: list[AnswerSet]
    withheld: bool
    matrices: tuple[Matrix, ...] = ()
    """Forgotten by tested tasks, where two runs or more of a method forgot different tasks."""
    changes: Changes | None = None
    """On what was to be kept, against the original."""
    groups: tuple[Drawn, ...] = ()
    """Radars or bars, one for each group of tasks."""
    evaluated: tuple[str, ...] = ()
    """Names of the runs that have the suite, without original and gold."""

    def tables(self) -> list[Table]:
        """In the order of the page."""
        cost = [change_table(self.changes)] if self.changes else []
        return [*([self.summary] if self.summary else []), *map(matrix_table, self.matrices), *cost, self.scores]


def section(
    suite: str, runs: Sequence[RunRecord], original: RunRecord | None, gold: RunRecord | None, show_forget_text: bool
) -> Section:
    references = [m for m in (original, gold) if m and m.evaluation(suite)]
    evaluated = [run for run in runs if run.evaluation(suite)]
    models = [*references, *evaluated]
    before = original if original in references else None
    cost = changes(suite, models, before) if before else None
    alike = [run for run in evaluated if not apart(run, models[0], suite)]
    lost = matrices(before, alike, suite) if before else ()
    lab = suite == SUITE and original is not None and gold is not None and len(references) == 2
    instead: dict[str, str] = {}
    if lab:
        assert original is not None
        assert gold is not None
        instead = {m.name: ", ".join(map(task_label, forgot_instead(m))) for m in evaluated if forgot_instead(m)}
        points = [
            Point(
                m.name,
                role(m, original, gold),
                m.family or "training",
                forget_effect(m, original, gold),
                retain_kept(m, original),
            )
            for m in models
            if m.name not in instead
        ]
        summary: Table | None = lab_table(evaluated, original, gold)
        facts = [run for run in evaluated if run.name not in instead]
        headline = lab_headline(facts, original, gold)
        if not facts and evaluated:
            headline = plain_headline(suite, evaluated, before, cost, lost), ""
        elif said := drops(lost):
            headline = headline[0], f"{headline[1]} {said}".strip()
    else:
        points = _quality_points(suite, models, original, gold)
        summary = suite_summary(suite, models, len(references), cost)
        headline = suite_headline(suite, evaluated, before, cost, lost)
    drawn, undrawn = drawable(points)
    undrawn |= {name: f"it was to forget {tasks}" for name, tasks in instead.items()}
    figure = (lab_tradeoff(drawn) if lab else quality_tradeoff(drawn, suite)) if drawn else None
    named = [(role(m, original, gold), m) for m in references]
    return Section(
        suite=suite,
        lab=lab,
        headline=headline,
        summary=summary,
        figure=figure,
        undrawn=undrawn,
        scores=score_table(suite, models, before),
        answers=answer_sets(suite, models, show_forget_text),
        withheld=withheld(suite, models, show_forget_text),
        matrices=lost,
        changes=cost,
        groups=tuple(draw_groups(groups(suite, models), named, alike)),
        evaluated=tuple(run.name for run in evaluated),
    )


def role(model: RunRecord, original: RunRecord | None, gold: RunRecord | None) -> Role:
    return "original" if model is original else "gold" if model is gold else "method"


def _quality_points(suite: str, models: Sequence[RunRecord], original: RunRecord | None, gold: RunRecord | None) -> list[Point]:
    """Models for which the suite asks for both model_utility and forget_quality, computed or not."""
    points = []
    for m in models:
        utility, quality = m.score(suite, "suite", "model_utility"), m.score(suite, "suite", "forget_quality")
        if utility and quality:
            if apart(m, models[0], suite):
                reason = f"scored on other samples than {models[0].name}"
                quality = quality.model_copy(update={"value": None, "low": None, "high": None, "unscored": reason})
            points.append(Point(m.name, role(m, original, gold), m.family or "training", utility, quality))
    return points


def by_distance(runs: Sequence[RunRecord], original: RunRecord, gold: RunRecord) -> list[RunRecord]:
    """Nearest to gold first, in the plane of the trade-off figure; last those that were not scored, or forgot something else."""
    target = retain_kept(gold, original).value or 1.0

    def distance(run: RunRecord) -> float:
        if forgot_instead(run):
            return float("inf")
        effect, kept = forget_effect(run, original, gold).value, retain_kept(run, original).value
        return float("inf") if effect is None or kept is None else float((effect - 1) ** 2 + (kept - target) ** 2)

    return sorted(runs, key=distance)
