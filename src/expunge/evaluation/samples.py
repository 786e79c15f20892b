"""Computes the samples of a task from the data of its examples, and its scores from the samples; runs no model."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from expunge.evaluation.judges import OfBeginning
from expunge.evaluation.metrics.base import Metric, Row, Unscored, finite
from expunge.evaluation.statistics import bootstrap_interval
from expunge.evaluation.task import Task
from expunge.records import Cut, Sample, Score

Made = TypeVar("Made")


class Once(Protocol):
    """Interface to what returns the result of `make`, perhaps an earlier one with the same key, which holds all that it depends
    on."""

    def __call__(self, key: Hashable, make: Callable[[], Made]) -> Made: ...


def always(key: Hashable, make: Callable[[], Made]) -> Made:
    """Computes everything anew."""
    return make()


def samples_of(task: Task, rows: Sequence[Row], *, show: bool, once: Once) -> list[Sample]:
    """Returns one sample per example and metric; texts, if they may be shown, are in that of the example's first metric."""
    found: list[Sample] = []
    for i, row in enumerate(rows):
        # Verdicts of judges are not looked into: with one, an example is always scored.
        judged = row.judged or row.judged_samples
        key = (
            None
            if judged or once is always
            else (task.name, i, show, *(_content(v) for v in row[1:] if not isinstance(v, Mapping)))
        )
        found += _samples(task, row, show) if key is None else once(key, partial(_samples, task, row, show))
    return found


def score_of(task: Task, metric: Metric, samples: Sequence[Sample], *, once: Once) -> Score:
    """Computes the mean over the scored samples of one metric, or the reason why there is none."""
    mine = [sample for sample in samples if sample.metric == metric.metric_name()]
    raw = np.array([sample.value for sample in mine if sample.value is not None], dtype=np.float64)
    name, role = metric.metric_name(), task.role
    higher = metric.higher_is_better(task.role)
    left = Counter(sample.unscored for sample in mine if sample.value is None and sample.unscored is not None)
    cut = Counter(what for sample in mine if sample.value is not None for what in sample.cut or ())
    if not len(raw):
        reason = mine[0].unscored if mine else "the task has no examples"
        return Score(task=task.name, metric=name, role=role, value=None, n=0, higher_is_better=higher, unscored=reason)
    values = metric.reported(raw, task.role)
    interval = once((metric.model_dump_json(), values.tobytes()), lambda: bootstrap_interval(values, metric.average))
    low, high = interval if interval is not None else (None, None)
    return Score(
        task=task.name,
        metric=name,
        role=role,
        value=float(metric.average(values)),
        low=low,
        high=high,
        n=len(values),
        higher_is_better=higher,
        left_out=dict(left),
        cut=dict(cut),
    )


def _samples(task: Task, row: Row, show: bool) -> list[Sample]:
    found, texts = [], _texts(row) if show else None
    for metric in task.metrics:
        value = finite(metric.score(row))
        found.append(
            Sample(
                task=task.name,
                metric=metric.metric_name(),
                id=row.example.id,
                role=task.role,
                value=None if isinstance(value, Unscored) else value,
                unscored=value.reason if isinstance(value, Unscored) else None,
                judged=metric.said(row) or None,
                cut=_cut(metric, row) or None,
                text=texts,
            )
        )
        texts = None
    return found


def _cut(metric: Metric, row: Row) -> tuple[Cut, ...]:
    """Returns which of the texts that the metric reads were cut off, or are read otherwise than they are
    written."""
    need = metric.needs_of(row.example)
    written = need & {"generated", "sampled"}
    found: dict[Cut, bool] = {
        "text": bool((need - written) & row.shortened),
        "answer": bool(written & row.shortened),
        "prompt": row.cut and bool(need),
        "unknown": bool(need & row.unknown),
        "control": bool(need & row.control),
        "judged": any(isinstance(said, OfBeginning) for judge in metric.judges for said in row.verdicts(judge)),
    }
    return tuple(what for what, is_cut in found.items() if is_cut)


def _texts(row: Row) -> dict[str, str]:
    texts = {"prompt": row.example.prompt, "expected": row.example.response, "generated": row.generated}
    texts |= {f"sampled_{i}": text for i, text in enumerate(row.sampled, start=1)}
    return {name: text for name, text in texts.items() if text is not None}


def _content(value: Any) -> Hashable:
    """Returns the numbers and texts of the data of an example, to be compared."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tobytes()
    if isinstance(value, tuple):
        return tuple(map(_content, value))
    found: Hashable = value
    return found
