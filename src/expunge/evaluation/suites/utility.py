"""Computes model utility from metrics of several tasks."""

from collections.abc import Sequence
from typing import NamedTuple

from expunge.evaluation.metrics.base import Floats
from expunge.evaluation.metrics.model_utility import model_utility
from expunge.evaluation.metrics.truth_ratio import truthful
from expunge.evaluation.task import SUITE, Results
from expunge.records import Score


class Component(NamedTuple):
    """One term of the harmonic mean: the mean of a metric on a task that should be kept."""

    task: str
    metric: str


def model_utility_score(results: Results, components: Sequence[Component]) -> Score:
    """Computes the harmonic mean of the components, truth ratios as max(0, 1 - R), with a bootstrap interval over samples."""
    values = {component: _values(results, component) for component in components}
    empty = [component for component in components if not len(values[component])]
    samples = sum(max(len(values[c]) for c in components if c.task == task) for task in {c.task for c in components})
    if empty or not components:
        reason = f"no sample of {empty[0].task} has a {empty[0].metric}" if empty else "the suite has no task to keep"
        return Score(task=SUITE, metric="model_utility", value=None, n=samples, higher_is_better=True, unscored=reason)
    tasks = dict.fromkeys(component.task for component in components)
    value, interval = model_utility([[values[c] for c in components if c.task == task] for task in tasks])
    low, high = interval if interval is not None else (None, None)
    return Score(task=SUITE, metric="model_utility", value=value, low=low, high=high, n=samples, higher_is_better=True)


def _values(results: Results, component: Component) -> Floats:
    raw = results.values(component.task, component.metric)
    return truthful(raw) if component.metric == "truth_ratio" else raw
