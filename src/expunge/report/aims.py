"""Determines, by the roles of tasks, which task and metric of a suite show forgetting, and which show retention."""

from collections.abc import Sequence
from typing import NamedTuple

from expunge.records import Role
from expunge.report.groups import TaskMetric, to_go
from expunge.report.read import RunRecord

KNOWN_BY = (
    "probability", "rouge_l_recall", "rouge", "extraction_strength", "accuracy", "accuracy_normalized", "exact_match",
    "pass_at_1", "f1", "containment", "exact_memorization", "harmful_rate", "toxicity",
)  # fmt: skip
"""Metrics between 0 and 1, the most sensitive first: a probability changes before an answer does."""


class Aim(NamedTuple):
    """The two scores that summarize a suite: what is left of the forget set, and what is left of the retain set."""

    suite: str
    gone: TaskMetric
    stays: TaskMetric | None
    """The first task to keep that has the same metric, else the first with any metric; None if no task was to be kept."""


def aim(suite: str, models: Sequence[RunRecord]) -> Aim | None:
    """Returns the aim of the first model that has a task with the role `forget`; without roles, of tasks on which low scores
    are good.

    models  gold and original first, so that runs that forgot something else are measured by what gold never saw
    """
    gone = next((asked for model in models if (asked := _known_by(model, suite, "forget", None))), None)
    gone = gone or next(iter(to_go(suite, models)), None)
    if gone is None:
        return None
    stays = [asked for metric in (gone.metric, None) for m in models if (asked := _known_by(m, suite, "retain", metric))]
    return Aim(suite, gone, next((asked for asked in stays if asked.task != gone.task), None))


def tasks_of(model: RunRecord, suite: str, role: Role) -> tuple[str, ...]:
    """Returns the tasks with a role in a model's evaluation."""
    evaluation = model.evaluation(suite)
    scores = evaluation.scores if evaluation else ()
    return tuple(dict.fromkeys(score.task for score in scores if score.role == role))


def forgot_instead(model: RunRecord, found: Aim) -> tuple[str, ...]:
    """Returns the tasks that a run was to forget instead of the aim's; empty for a run that was to forget that one."""
    mine = tasks_of(model, found.suite, "forget")
    return () if found.gone.task in mine else mine


def _known_by(model: RunRecord, suite: str, role: Role, metric: str | None) -> TaskMetric | None:
    """Returns the first task of a role that has the metric, or any of `KNOWN_BY`. A task that pools others (`wmdp` over
    `wmdp_bio`) stands for them."""
    tasks = tasks_of(model, suite, role)
    pools = [task for task in tasks if not any(task.startswith(f"{other}_") for other in tasks)]
    for wanted in (metric,) if metric else KNOWN_BY:
        for task in pools:
            if model.score(suite, task, wanted):
                return TaskMetric(task, wanted)
    return None
