"""Selects the two or three key figures of a suite."""

from collections.abc import Sequence
from typing import NamedTuple

from expunge.records import Score
from expunge.report.glossary import meaning, task_label
from expunge.report.groups import TaskMetric, to_go
from expunge.report.page_tables import rows_of
from expunge.report.read import RunRecord
from expunge.report.sections import Section

WHOLE = 2
"""Number of suite-wide scores that are taken."""


class KeyFigure(NamedTuple):
    """One figure of every model that has it."""

    title: str
    explanation: str | None
    scores: dict[str, Score]
    """Model -> score."""
    said: dict[str, str]
    """Model -> text below the value instead of its interval."""


def key_figures(section: Section, models: Sequence[RunRecord]) -> list[KeyFigure]:
    """Returns what is forgotten and what is kept, if the suite shows both; otherwise suite-wide scores, or the forget score
    and the side effects."""
    suite, scored = section.suite, [m for m in models if m.evaluation(section.suite)]
    relative = [e for e in section.effects.values() if e.gone.metric in ("forget_effect", "relative_drop")]
    if relative and section.aim and section.aim.stays:
        gone = {name: e.gone for name, e in section.effects.items()}
        kept = {name: e.kept for name, e in section.effects.items()}
        pairs = ((relative[0].gone.metric, gone), ("retain_kept", kept))
        return [KeyFigure(meaning(metric).label, meaning(metric).sentence, scores, {}) for metric, scores in pairs]
    whole = [TaskMetric("suite", metric) for task, metric in rows_of(suite, scored) if task == "suite"][:WHOLE]
    found = []
    for task, metric in whole or to_go(suite, scored)[:1]:
        scores = {m.name: score for m in scored if (score := m.score(suite, task, metric))}
        title = meaning(metric).label + ("" if task == "suite" else f", {task_label(task)}")
        found.append(KeyFigure(title, meaning(metric).sentence, scores, {}))
    if section.changes and not section.figure:
        cost = section.changes
        worst = {name: one for name in cost.after if (one := cost.worst(name))}
        found.append(KeyFigure("mean change", None, {name: cost.mean(name) for name in cost.after}, {}))
        names = {name: task_label(asked.task) for name, (asked, _) in worst.items()}
        found.append(KeyFigure("worst change", None, {name: score for name, (_, score) in worst.items()}, names))
    return found
