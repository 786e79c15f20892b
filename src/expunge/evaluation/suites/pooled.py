"""Computes scores over the pooled samples of several tasks, so that larger tasks count more (lm-eval's `weight_by_size`)."""

from collections.abc import Sequence

import numpy as np

from expunge.evaluation.statistics import bootstrap_interval
from expunge.evaluation.task import Results, Task
from expunge.records import Role, Score


def pooled_score(results: Results, name: str, tasks: Sequence[Task], metric: str) -> Score:
    """Computes the metric's average over all samples of `tasks`, as the score of the task `name`.

    Its direction is that of the tasks, or None if they disagree.
    """
    values = np.concatenate([np.zeros(0), *(results.values(task.name, metric) for task in tasks)])
    roles: set[Role] = {task.role for task in tasks}
    taken = [m for task in tasks for m in task.metrics if m.metric_name() == metric]
    directions = {m.higher_is_better(role) for m in taken for role in roles}
    higher = directions.pop() if len(directions) == 1 else None
    role = roles.pop() if len(roles) == 1 else None
    if not len(values):
        reason = f"no sample has a {metric}"
        return Score(task=name, metric=metric, role=role, value=None, n=0, higher_is_better=higher, unscored=reason)
    average = taken[0].average
    low, high = bootstrap_interval(values, average) or (None, None)
    value = float(average(values))
    return Score(task=name, metric=metric, role=role, value=value, low=low, high=high, n=len(values), higher_is_better=higher)
