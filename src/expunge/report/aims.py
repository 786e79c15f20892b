"""What a suite was about: which task was to go, which to stay, and the metric of each. Roles decide, never names."""

from collections.abc import Sequence
from typing import NamedTuple

from expunge.records import Role
from expunge.report.groups import TaskMetric, to_go
from expunge.report.read import RunRecord

KNOWN_BY = (
    "probability", "rouge_l_recall", "rouge", "extraction_strength", "accuracy", "accuracy_normalized", "exact_match",
    "pass_at_1", "f1", "containment", "exact_memorization", "harmful_rate", "toxicity",
)  # fmt: skip
"""Metrics between 0 and 1, the finest first: a probability moves before an answer turns."""


class Aim(NamedTuple):
    """The pair of scores that sums a suite up: what is left of what was to go, and what is left of what was to stay."""

    suite: str
    gone: TaskMetric
    stays: TaskMetric | None
    """The first task to keep that has the same metric, else the first with any metric; nothing where no task was to be kept."""


def aim(suite: str, models: Sequence[RunRecord]) -> Aim | None:
    """The aim of the first model that has a task with the role `forget`; without roles, of what low scores are good for.

    models: gold and original first, so that runs which forgot something else are measured by what gold never saw.
    """
    gone = next((asked for model in models if (asked := _known_by(model, suite, "forget", None))), None)
    gone = gone or next(iter(to_go(suite, models)), None)
    if gone is None:
        return None
    stays = [asked for metric in (gone.metric, None) for m in models if (asked := _known_by(m, suite, "retain", metric))]
    return Aim(suite, gone, next((asked for asked in stays if asked.task != gone.task), None))


def tasks_of(model: RunRecord, suite: str, role: Role) -> tuple[str, ...]:
    """The tasks that have a role in a model's evaluation."""
    evaluation = model.evaluation(suite)
    scores = evaluation.scores if evaluation else ()
    return tuple(dict.fromkeys(score.task for score in scores if score.role == role))


def forgot_instead(model: RunRecord, found: Aim) -> tuple[str, ...]:
    """The tasks that a run was to forget in place of the aim's; none for a run that was to forget that one."""
    mine = tasks_of(model, found.suite, "forget")
    return () if found.gone.task in mine else mine


def _known_by(model: RunRecord, suite: str, role: Role, metric: str | None) -> TaskMetric | None:
    """The first task of a role that has the metric, or any of `KNOWN_BY`. A task that pools others (`wmdp` over `wmdp_bio`)
    stands for them."""
    tasks = tasks_of(model, suite, role)
    pools = [task for task in tasks if not any(task.startswith(f"{other}_") for other in tasks)]
    for wanted in (metric,) if metric else KNOWN_BY:
        for task in pools:
            if model.score(suite, task, wanted):
                return TaskMetric(task, wanted)
    return None
