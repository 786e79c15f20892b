"""Converts lm-eval's results to this library's records: scores with intervals, and one sample per question and metric."""

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from expunge.evaluation.metrics.base import BROKEN
from expunge.evaluation.statistics import bootstrap_interval
from expunge.records import Record, Role, Sample, Score

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

NAMES = {"acc": "accuracy", "acc_norm": "accuracy_normalized"}
OWN_NAMES = {("truthfulqa_mc1", "acc"): "mc1", ("truthfulqa_mc2", "acc"): "mc2"}
PROMPT_CUT = "prompt_cut"
NORMAL_95 = 1.959963984540054


class TaskResults(Record):
    """The results of one wanted task, group or tag."""

    key: str = ""
    """A hash over what the result depends on."""
    tasks: tuple[str, ...] = ()
    """The tasks that it consists of."""
    scores: tuple[Score, ...]
    samples: tuple[Sample, ...] = ()

    def values(self, metric: str) -> list[float]:
        """Returns the values of all questions, over all tasks."""
        return [sample.value for sample in self.samples if sample.metric == metric and sample.value is not None]


def metric_name(task: str, metric: str, filter_name: str) -> str:
    """Returns this library's name for a metric of lm-eval; a filter that extracts the answer is part of it."""
    name = OWN_NAMES.get((task, metric)) or NAMES.get(metric, metric)
    return name if filter_name == "none" else f"{name}_{filter_name.replace('-', '_')}"


def read_results(
    results: Mapping[str, Any], wanted: str, cut: Container[str], broken: Container[str], *, role: Role, show: bool
) -> TaskResults:
    """Converts the scores of the wanted task and of all that it consists of, and the share of its prompts that were cut.

    cut     contexts whose beginning was cut off
    broken  contexts after which the model's logits are not numbers: whatever lm-eval found there is no score
    role    role of the tasks; for the role forget, lm-eval's direction of good is reversed
    show    write prompts, expected and generated texts into the samples
    """
    leaves: dict[str, Sequence[Mapping[str, Any]]] = results["samples"]
    samples = [sample for task, rows in leaves.items() for sample in _samples(task, rows, cut, broken, role, show=show)]
    by_metric: dict[tuple[str, str], list[float]] = {}
    silent: dict[str, set[str]] = {}
    for sample in samples:
        if sample.value is not None:
            by_metric.setdefault((sample.task, sample.metric), []).append(sample.value)
        else:
            silent.setdefault(sample.task, set()).add(sample.id)

    scores = []
    for name, numbers in results["results"].items():
        members = _leaves(name, results["group_subtasks"], leaves)
        for label, value in numbers.items():
            metric, comma, filter_name = label.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            known = metric_name(name, metric, filter_name)
            values = [value for member in members for value in by_metric.get((member, known), ())]
            n = len(values) or int(numbers["sample_len"])
            higher = results["higher_is_better"].get(name, {}).get(metric)
            higher = higher if higher is None or role != "forget" else not higher
            if lost := sum(len(silent.get(member, ())) for member in members):
                reason = f"{BROKEN} (after {lost} of its questions)"
                scores.append(
                    Score(task=name, metric=known, role=role, value=None, n=0, higher_is_better=higher, unscored=reason)
                )
                continue
            error = numbers.get(f"{metric}_stderr,{filter_name}")
            scores.append(_score(name, known, role, value, values, error, n, higher))
    cuts = np.array([sample.value for sample in samples if sample.metric == PROMPT_CUT], dtype=np.float64)
    scores.append(_score(wanted, PROMPT_CUT, role, float(cuts.mean()), list(cuts), None, len(cuts), False))
    return TaskResults(tasks=tuple(leaves), scores=tuple(scores), samples=tuple(samples))


def unscored(index: "TaskManager", name: str, reason: str, *, role: Role) -> TaskResults:
    """Makes scores without a value, with the reason, for every metric of the task."""
    config = index.task_index[name].cfg or {}
    metrics = config.get("metric_list") or config.get("aggregate_metric_list") or [{"metric": "acc"}]
    filters = [found["name"] for found in config.get("filter_list", ())] or ["none"]
    names = [metric_name(name, metric["metric"], found) for metric in metrics for found in filters]
    return TaskResults(
        scores=tuple(
            Score(task=name, metric=metric, role=role, value=None, n=0, higher_is_better=role != "forget", unscored=reason)
            for metric in names
        )
    )


def _score(
    task: str, metric: str, role: Role, value: Any, values: Sequence[float], error: Any, n: int, higher: bool | None
) -> Score:
    """Converts a score. A mean over questions gets the bootstrap interval of this library, other values the normal interval
    of lm-eval's standard error."""
    if not isinstance(value, int | float) or not np.isfinite(value):
        reason = f"lm-eval gives {value}, which is no finite number"
        return Score(task=task, metric=metric, role=role, value=None, n=n, higher_is_better=higher, unscored=reason)
    low: float | None = None
    high: float | None = None
    if values and np.isclose(np.mean(values), value, rtol=0, atol=1e-9):
        low, high = bootstrap_interval(np.array(values, dtype=np.float64)) or (None, None)
    elif isinstance(error, float) and np.isfinite(error):
        low, high = value - NORMAL_95 * error, value + NORMAL_95 * error
    return Score(task=task, metric=metric, role=role, value=float(value), low=low, high=high, n=n, higher_is_better=higher)


def _samples(
    task: str, rows: Sequence[Mapping[str, Any]], cut: Container[str], broken: Container[str], role: Role, *, show: bool
) -> list[Sample]:
    """Yields one sample per question and metric, and whether its prompt was cut. A filter adds a second row per question."""
    samples, seen = [], set[int]()
    for row in rows:
        texts = _texts(row) if show else None
        says_nothing = any(arguments[0] in broken for arguments in row["arguments"])
        for metric in row["metrics"]:
            value = row[metric]
            name = metric_name(task, metric, row["filter"])
            if says_nothing:
                samples.append(Sample(task=task, metric=name, role=role, id=row["doc_hash"][:16], value=None, unscored=BROKEN))
            elif isinstance(value, bool | int | float | np.number) and np.isfinite(value):
                samples.append(Sample(task=task, metric=name, role=role, id=row["doc_hash"][:16], value=float(value), text=texts))
                texts = None
        if row["doc_id"] not in seen:
            seen.add(row["doc_id"])
            lost = any(arguments[0] in cut for arguments in row["arguments"])
            samples.append(Sample(task=task, metric=PROMPT_CUT, role=role, id=row["doc_hash"][:16], value=float(lost)))
    return samples


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    texts = {"prompt": str(row["arguments"][0][0]), "expected": str(row["target"])}
    answer = row["filtered_resps"][0]
    return texts | {"generated": answer} if isinstance(answer, str) else texts


def _leaves(name: str, groups: Mapping[str, Sequence[str]], leaves: Container[str]) -> list[str]:
    """Returns the tasks that a name stands for, itself included."""
    found = [name] if name in leaves else []
    return found + [leaf for member in groups.get(name, ()) for leaf in _leaves(member, groups, leaves)]
