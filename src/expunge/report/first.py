"""The first figures of a suite: what stands for it where there is room for two or three numbers only."""

from collections.abc import Sequence
from typing import NamedTuple

from expunge.records import Score
from expunge.report.contents import rows_of
from expunge.report.effects import forget_effect, retain_kept
from expunge.report.glossary import meaning, task_label
from expunge.report.groups import Asked, to_go
from expunge.report.read import RunRecord
from expunge.report.sections import Section

WHOLE = 2
"""Scores over a whole suite that are taken."""


class First(NamedTuple):
    """One figure of every model that has it."""

    title: str
    explanation: str | None
    scores: dict[str, Score]
    """Model -> score."""
    said: dict[str, str]
    """Model -> what stands below the value instead of its interval."""


def first_figures(
    section: Section, models: Sequence[RunRecord], original: RunRecord | None, gold: RunRecord | None
) -> list[First]:
    """In the lab the two effects; else scores over the whole suite, or what is left of what was to go, and what it cost."""
    suite, scored = section.suite, [m for m in models if m.evaluation(section.suite)]
    if section.lab and original and gold:
        effects = {m.name: forget_effect(m, original, gold) for m in scored}
        kept = {m.name: retain_kept(m, original) for m in scored}
        pairs = (("forget_effect", effects), ("retain_kept", kept))
        return [First(meaning(metric).label, meaning(metric).sentence, scores, {}) for metric, scores in pairs]
    whole = [Asked("suite", metric) for task, metric in rows_of(suite, scored) if task == "suite"][:WHOLE]
    found = []
    for task, metric in whole or to_go(suite, scored)[:1]:
        scores = {m.name: score for m in scored if (score := m.score(suite, task, metric))}
        title = meaning(metric).label + ("" if task == "suite" else f", {task_label(task)}")
        found.append(First(title, meaning(metric).sentence, scores, {}))
    if section.changes and not section.figure:
        cost = section.changes
        worst = {name: one for name in cost.after if (one := cost.worst(name))}
        found.append(First("mean change", None, {name: cost.mean(name) for name in cost.after}, {}))
        names = {name: task_label(asked.task) for name, (asked, _) in worst.items()}
        found.append(First("worst change", None, {name: score for name, (_, score) in worst.items()}, names))
    return found
