"""Defines the interface of suites: frozen values with options, which build tasks from a data folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import ConfigDict

from expunge.described import Described
from expunge.errors import ExpungeError
from expunge.evaluation.metrics.base import Metric, Unscored
from expunge.evaluation.metrics.forget_quality import forget_quality
from expunge.evaluation.task import SUITE, Results, Suite
from expunge.records import Role, Score, read_evaluation, read_samples


class Scored(NamedTuple):
    """Tasks of a suite that have the same metrics, for its description."""

    tasks: str
    """Task names separated by commas; a word in capitals stands for what depends on the data."""
    metrics: tuple[str | Metric, ...]
    """Metric names, ATTACK for each membership attack; or a metric itself if its direction depends on its settings."""
    role: Role = "neutral"


class SuiteSpec(Described):
    """Base class of suites. Fields are options; class attributes explain the suite (`expunge suites` prints them)."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    purpose: ClassVar[str]
    """What the suite measures, in a few words."""
    source: ClassVar[str]
    """Where the suite comes from."""
    layout: ClassVar[str]
    """Files that it reads, and where to get them."""
    scored: ClassVar[tuple[Scored, ...]]
    """Everything that it may score, depending on its options."""

    @classmethod
    def suite_name(cls) -> str:
        """Returns the name on the command line."""
        name: str = cls.__pydantic_fields__["name"].default
        return name

    def names_all_files(self) -> bool:
        """Returns whether its options name every file that it reads, so that it needs no folder (`build` is then given "")."""
        return False

    def build(self, data: str | Path) -> Suite:
        """Reads the data: a folder, or a hub id if the suite has one. Raises ExpungeError that names the file and its source."""
        raise TypeError(f"{type(self).__name__} builds no suite")


class ReferencedSuite(SuiteSpec):
    """A suite with scores that compare the model with other models, by the samples of their evaluations with the same suite.

    `retain_scores` is the evaluation of a model that never saw the forget set (a gold or retain model), `reference_scores` that
    of any other model with the same language. Each is a run folder, its evaluation folder or a sample file.
    """

    retain_scores: Path | None = None
    """Evaluation of a model that never saw the forget set (for the lab: gold), with this suite."""

    def retain_values(self, suite: str, task: str, metric: str) -> dict[str, float] | None:
        """Returns example id -> value of the model that never saw the forget set; None without its evaluation."""
        return reference_values(self.retain_scores, suite, task, metric) if self.retain_scores is not None else None


class AttackedSuite(ReferencedSuite):
    """A suite with membership attacks, one of which compares with a model that need not be a retain model."""

    reference_scores: Path | None = None
    """Evaluation of another model of the same language (a smaller one, or the one before fine-tuning), for mia_reference."""


def no_summary(_: Results) -> list[Score]:
    """Returns no scores, for suites without scores over several tasks."""
    return []


def reference_values(scores: Path, suite: str, task: str, metric: str) -> dict[str, float]:
    """Reads example id -> value from another model's evaluation: a run folder, its evaluation folder, or the sample file.
    Raises ExpungeError, with the command that makes it, if it is missing."""
    file = _samples_file(scores, suite)
    if file is None:
        name = f"{suite}.samples.jsonl"
        raise ExpungeError(
            f"{scores} holds no {name}; evaluate the retain model first: expunge evaluate RETAIN_MODEL --suite "
            f"{suite.partition('_')[0]} --data DATA --out {scores}"
        )
    found = {
        sample.id: sample.value
        for sample in read_samples(file)
        if sample.task == task and sample.metric == metric and sample.value is not None
    }
    if not found:
        raise ExpungeError(f"{file} has no {metric} of the task {task}; evaluate the retain model with the suite {suite}")
    return found


def scored_model(scores: Path, suite: str) -> str | None:
    """Returns the hash of the model of another evaluation; None where it is not recorded."""
    samples = _samples_file(scores, suite)
    file = None if samples is None else samples.with_name(f"{samples.name.removesuffix('.samples.jsonl')}.json")
    return read_evaluation(file).fingerprint if file is not None and file.is_file() else None


def _samples_file(scores: Path, suite: str) -> Path | None:
    name = f"{suite}.samples.jsonl"
    places = [scores] if scores.is_file() else [scores / "evaluation" / name, scores / name]
    return next((place for place in places if place.is_file()), None)


def forget_quality_score(results: Results, task: str, retain: Mapping[str, float] | None, advice: str) -> Score:
    """Computes the KS p-value between the truth ratios of `task` and those of the retain model on the same examples.

    advice  how to make the retain model's scores
    """
    mine = results.by_id(task, "truth_ratio")
    value: float | Unscored
    if retain is None:
        value = Unscored(f"needs the truth ratios of a model that never saw the forget set: {advice}")
    elif missing := sum(id not in retain for id in mine):
        value = Unscored(f"the retain model's scores lack {missing} of {len(mine)} forget questions; evaluate it on the same")
    else:
        value = forget_quality(np.array(list(mine.values())), np.array([retain[id] for id in mine]))
    reason = value.reason if isinstance(value, Unscored) else None
    number = None if isinstance(value, Unscored) else value
    return Score(task=SUITE, metric="forget_quality", value=number, n=len(mine), higher_is_better=True, unscored=reason)
