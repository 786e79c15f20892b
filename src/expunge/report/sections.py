"""Makes one suite's part of the page: headline, summary, figures, scores, side effects, sample answers."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from expunge.records import Score
from expunge.report.aims import Aim, aim, forgot_instead
from expunge.report.answers import AnswerSet, answer_sets, withheld
from expunge.report.changes import Changes, change_table, changes
from expunge.report.checks import apart
from expunge.report.effects import Effects, forget_effect, retain_kept, share_gone
from expunge.report.glossary import task_label
from expunge.report.gold import Against, against, gold_table
from expunge.report.groups import groups
from expunge.report.headline import headline
from expunge.report.matrix import Matrix, matrices, matrix_table
from expunge.report.page_tables import score_table, summary_table
from expunge.report.radar import GroupFigure, draw_groups
from expunge.report.read import RunRecord
from expunge.report.tables import Table
from expunge.report.tradeoff import Point, drawable, quality_tradeoff, tradeoff

Place = Literal["original", "gold", "method"]
"""Role of a model in the report."""


class Section(NamedTuple):
    """One suite's part of the page."""

    suite: str
    aim: Aim | None
    headline: tuple[str, str]
    summary: Table | None
    against: Against | None
    """Each run against gold, statistic by statistic; None without a gold model with this suite."""
    effects: dict[str, Effects]
    """Model -> the two main figures; runs that were to forget something else are left out."""
    figure: str | None
    quality: str | None
    """Forget quality against model utility, if the suite computed both."""
    undrawn: dict[str, str]
    unquality: dict[str, str]
    """Model -> why it is not in that figure."""
    scores: Table
    answers: list[AnswerSet]
    withheld: bool
    matrices: tuple[Matrix, ...] = ()
    """Forgotten by tested tasks, if at least two runs of a method forgot different tasks."""
    changes: Changes | None = None
    """Changes of tasks to keep, against the original."""
    groups: tuple[GroupFigure, ...] = ()
    """Radar charts or bars, one for each group of tasks."""
    evaluated: tuple[str, ...] = ()
    """Names of the runs that have the suite, without original and gold."""

    @property
    def across(self) -> str:
        """Returns the metric on the horizontal axis of the figure: two grow with what is forgotten, and a score itself falls."""
        return next(iter(self.effects.values())).gone.metric

    def tables(self) -> list[Table]:
        """Returns the tables in the order of the page."""
        first = [self.summary] if self.summary else []
        tested = [gold_table(self.against)] if self.against else []
        cost = [change_table(self.changes)] if self.changes else []
        return [*first, *tested, *map(matrix_table, self.matrices), *cost, self.scores]


def section(
    suite: str, runs: Sequence[RunRecord], original: RunRecord | None, gold: RunRecord | None, show_forget_text: bool
) -> Section:
    """Makes everything about one suite; original and gold count only if they were scored with it."""
    before = original if original and original.evaluation(suite) else None
    never = gold if gold and gold.evaluation(suite) else None
    references = [m for m in (before, never) if m]
    evaluated = [run for run in runs if run.evaluation(suite)]
    models = [*references, *evaluated]
    alike = [run for run in evaluated if not apart(run, models[0], suite)]
    lost = matrices(before, alike, suite) if before else ()
    found = aim(suite, [*([never] if never else []), *([before] if before else []), *evaluated]) if never or not lost else None
    instead = {m.name: forgot_instead(m, found) for m in evaluated if found and forgot_instead(m, found)}
    aimed = [m for m in models if m.name not in instead or m in references]
    effects = {m.name: _effects(m, before, never, found) for m in aimed} if found else {}
    tested = against(suite, evaluated, never) if never and found else None
    cost = changes(suite, models, before) if before else None
    drawn, undrawn = drawable(_points(aimed, effects, before, never, suite))
    quality, unquality = drawable(_quality_points(suite, models, before, never))
    undrawn |= {name: f"it was to forget {', '.join(map(task_label, tasks))}" for name, tasks in instead.items()}
    return Section(
        suite=suite,
        aim=found,
        headline=headline(suite, evaluated, before, never, found, effects, tested, cost, lost),
        summary=summary_table(suite, models, len(references), found, effects, tested, cost, instead),
        against=tested,
        effects=effects,
        figure=tradeoff(drawn, suite, found) if found and len(drawn) > 1 else None,
        quality=quality_tradeoff(quality, suite) if any(p.place == "method" for p in quality) else None,
        undrawn=undrawn,
        unquality=unquality if any(p.place == "method" for p in quality) else {},
        scores=score_table(suite, models, before),
        answers=answer_sets(suite, models, show_forget_text),
        withheld=withheld(suite, models, show_forget_text),
        matrices=lost,
        changes=cost,
        groups=tuple(draw_groups(groups(suite, models), [(place_of(m, original, gold), m) for m in references], alike)),
        evaluated=tuple(run.name for run in evaluated),
    )


def place_of(model: RunRecord, original: RunRecord | None, gold: RunRecord | None) -> Place:
    """Returns whether a model is the original, gold, or a method."""
    return "original" if model is original else "gold" if model is gold else "method"


def _effects(model: RunRecord, original: RunRecord | None, gold: RunRecord | None, found: Aim) -> Effects:
    if original is None:
        return Effects(_own(model, found, "gone"), _own(model, found, "stays"))
    gone = forget_effect(model, original, gold, found) if gold else share_gone(model, original, found)
    return Effects(gone, retain_kept(model, original, found))


def _own(model: RunRecord, found: Aim, which: Literal["gone", "stays"]) -> Score:
    """Returns the score itself, if there is nothing to compare it with."""
    asked = found.gone if which == "gone" else found.stays
    if asked is None:
        return Score(task="suite", metric="retain_kept", value=None, n=0, unscored="the suite has no task to keep")
    reason = f"{model.name} has no {asked.metric} on {task_label(asked.task)}"
    missing = Score(task=asked.task, metric=asked.metric, value=None, n=0, unscored=reason)
    return model.score(found.suite, asked.task, asked.metric) or missing


def _points(
    models: Sequence[RunRecord], effects: dict[str, Effects], original: RunRecord | None, gold: RunRecord | None, suite: str
) -> list[Point]:
    points = []
    for m in models if effects else ():
        gone, kept = effects[m.name]
        if gone.value is not None and apart(m, models[0], suite):
            reason = f"scored on other samples than {models[0].name}"
            gone = gone.model_copy(update={"value": None, "low": None, "high": None, "unscored": reason})
        points.append(Point(m.name, place_of(m, original, gold), m.family or "training", gone, kept))
    return points


def _quality_points(suite: str, models: Sequence[RunRecord], original: RunRecord | None, gold: RunRecord | None) -> list[Point]:
    """Returns the models with both model_utility and forget_quality; empty if no model has both."""
    points = []
    for m in models:
        utility, quality = m.score(suite, "suite", "model_utility"), m.score(suite, "suite", "forget_quality")
        if utility and quality:
            if apart(m, models[0], suite):
                reason = f"scored on other samples than {models[0].name}"
                quality = quality.model_copy(update={"value": None, "low": None, "high": None, "unscored": reason})
            points.append(Point(m.name, place_of(m, original, gold), m.family or "training", utility, quality))
    return points if any(p.y.value is not None and p.x.value is not None for p in points) else []


def by_distance(runs: Sequence[RunRecord], original: RunRecord, gold: RunRecord, found: Aim) -> list[RunRecord]:
    """Sorts by the distance to gold, in the plane of the trade-off figure; runs without scores, or that forgot something
    else, come last."""
    target = retain_kept(gold, original, found).value or 1.0

    def distance(run: RunRecord) -> float:
        if forgot_instead(run, found):
            return float("inf")
        effect, kept = forget_effect(run, original, gold, found).value, retain_kept(run, original, found).value
        return float("inf") if effect is None else float((effect - 1) ** 2 + ((target if kept is None else kept) - target) ** 2)

    return sorted(runs, key=distance)
