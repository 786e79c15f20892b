"""Suite custom: your own tasks and metrics, defined in a YAML file beside the data."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from expunge.data.read import read_examples
from expunge.described import Described
from expunge.errors import ExpungeError, nearest
from expunge.evaluation.metrics import METRICS, AnyMetric
from expunge.evaluation.metrics.membership import MembershipMetric
from expunge.evaluation.suites.attacked import TaskPair, attack_scores, privleak_score, reference_scores
from expunge.evaluation.suites.base import AttackedSuite, Scored, forget_quality_score
from expunge.evaluation.suites.utility import Component, model_utility_score
from expunge.evaluation.task import Results, Suite, Task
from expunge.records import Role, Score

ADVICE = "evaluate a model trained without it with the same file and --out DIR, then give --retain-scores DIR"


class _Part(Described):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskFile(_Part):
    """One entry of `tasks`."""

    name: str = Field(pattern=r"^[\w-]+$")
    data: str
    """A data file, beside the YAML file or by its full path, or a hub id."""
    metrics: tuple[AnyMetric, ...] = Field(min_length=1)
    """Names, or a name with the metric's fields: `{name: rouge, kind: rouge2}`."""
    role: Role = "neutral"
    """forget, retain, neutral or control (never trained on): decides which direction is good and what a report compares."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field -> column of the data file, if names differ."""
    secret: bool = True
    """Keep prompts and answers out of the sample file unless --show-forget-text is given."""
    max_new_tokens: int = Field(200, ge=1)
    """Longest written answer."""
    verbatim: bool = False
    """Prompts are complete texts, to which no template is added; answers have their own leading space."""
    stop: tuple[str, ...] = ()
    """A generated answer ends before the first of these."""

    @field_validator("metrics", mode="before")
    @classmethod
    def _names(cls, metrics: Any) -> Any:
        if not isinstance(metrics, list):
            return metrics
        whole = [{"name": metric} if isinstance(metric, str) else metric for metric in metrics]
        for metric in whole:
            name = metric.get("name") if isinstance(metric, dict) else None
            if name not in METRICS:
                raise ValueError(f"there is no metric '{name}'{nearest(str(name), METRICS)}; `expunge suites` lists them")
        return whole

    @model_validator(mode="after")
    def _once(self) -> "TaskFile":
        if twice := _twice([metric.metric_name() for metric in self.metrics]):
            raise ValueError(f"the metric {twice} is there twice; write a second task on the same data for its other settings")
        return self


class MembershipFile(_Part):
    """The entry `membership`: which two tasks the attacks compare."""

    forget: str
    holdout: str


class ComponentFile(_Part):
    """One entry of `model_utility`."""

    task: str
    metric: str


class SuiteFile(_Part):
    """The whole file."""

    name: str | None = Field(None, pattern=r"^[\w-]+$")
    """The stem of the score file; default: the stem of the YAML file."""
    tasks: tuple[TaskFile, ...] = Field(min_length=1)
    membership: MembershipFile | None = None
    """AUC of each `mia_` metric that both tasks have, and privleak of mia_min_k."""
    model_utility: tuple[ComponentFile, ...] = ()
    """Metrics of tasks that are combined by a harmonic mean."""
    forget_quality: str | None = None
    """The task whose truth ratios are compared with a retain model's."""

    @model_validator(mode="after")
    def _tasks_exist(self) -> "SuiteFile":
        names = [task.name for task in self.tasks]
        if twice := _twice(names):
            raise ValueError(f"there are two tasks '{twice}'")
        has = {task.name: {metric.metric_name() for metric in task.metrics} for task in self.tasks}
        asked: list[tuple[str, str | None]] = [(c.task, c.metric) for c in self.model_utility]
        asked += [(self.forget_quality, "truth_ratio")] if self.forget_quality is not None else []
        asked += [(name, None) for name in self.membership.model_dump().values()] if self.membership else []
        for task, metric in asked:
            if task not in has:
                raise ValueError(f"there is no task '{task}'{nearest(task, has)}")
            if metric is not None and metric not in has[task]:
                raise ValueError(f"the task {task} has no metric {metric}")
        if self.membership is not None and not self.attacks:
            raise ValueError("membership needs a metric such as mia_min_k in both of its tasks")
        return self

    @property
    def attacks(self) -> list[str]:
        """Returns the membership metrics of both tasks of `membership`."""
        if self.membership is None:
            return []
        both = [task for task in self.tasks if task.name in (self.membership.forget, self.membership.holdout)]
        names = [[m.metric_name() for m in task.metrics if isinstance(m, MembershipMetric)] for task in both]
        return [name for name in names[0] if all(name in other for other in names)]


class Custom(AttackedSuite):
    """Your own tasks and metrics. The file lists the tasks, each with a data file, metrics and a role:

        tasks:
          - {name: forget, data: forget.jsonl, role: forget, metrics: [probability, extraction_strength, mia_min_k]}
          - {name: holdout, data: holdout.jsonl, metrics: [mia_min_k]}
          - {name: manners, data: asked.jsonl, metrics: [{name: harmful_rate, judge: {kind: keywords, words: [fool]}}]}
        membership: {forget: forget, holdout: holdout}
        model_utility: [{task: retain, metric: probability}]
        forget_quality: forget

    The last three, scores over several tasks, are optional.
    """

    purpose: ClassVar[str] = "your own tasks and metrics, from a YAML file"
    source: ClassVar[str] = "own data"
    layout: ClassVar[str] = "a YAML file with `tasks`: name, data (a JSONL file beside it), metrics, role"
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored("TASK", tuple(METRICS)),
        Scored("suite", ("forget_quality", "model_utility", "privleak", "ATTACK", "ATTACK_relative_difference")),
    )

    name: Literal["custom"] = "custom"

    def build(self, data: str | Path) -> Suite:
        path = Path(data)
        file = read_suite_file(path)
        name = file.name or path.stem
        tasks = tuple(_task(task, path.parent) for task in file.tasks)
        sets = TaskPair(file.membership.forget, file.membership.holdout) if file.membership else None
        attacks, members = file.attacks, [name for name in file.attacks if name == "mia_loss"]
        retain = reference_scores(self.retain_scores, name, sets, attacks) if sets else None
        reference = reference_scores(self.reference_scores, name, sets, members) if sets and members else None
        ratios = self.retain_values(name, file.forget_quality, "truth_ratio") if file.forget_quality is not None else None

        def summarize(results: Results) -> list[Score]:
            scores = []
            if file.forget_quality is not None:
                scores.append(forget_quality_score(results, file.forget_quality, ratios, ADVICE))
            if file.model_utility:
                scores.append(model_utility_score(results, [Component(c.task, c.metric) for c in file.model_utility]))
            if sets is not None:
                scores += attack_scores(results, sets, attacks, retain=retain, reference=reference, advice=ADVICE)
                if "mia_min_k" in attacks:
                    scores.append(privleak_score(results, sets, retain, advice=ADVICE))
            return scores

        return Suite(name, tasks, summarize)


def read_suite_file(path: Path) -> SuiteFile:
    """Reads and checks a suite's YAML file. Raises ExpungeError that names the faulty field."""
    if not path.is_file():
        raise ExpungeError(f"there is no file {path}; the suite custom needs {Custom.layout}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ExpungeError(f"{path} is not YAML ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(content, Mapping):
        raise ExpungeError(f"{path} is not a suite; it needs {Custom.layout}")
    try:
        return SuiteFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise ExpungeError(f"{path}{f', {place}' if place else ''}: {reason}; correct the file") from None


def _task(task: TaskFile, folder: Path) -> Task:
    beside = folder / task.data
    examples = read_examples(beside if beside.exists() else task.data, columns=task.columns)
    return Task(
        task.name,
        examples,
        task.metrics,
        task.role,
        secret=task.secret,
        max_new_tokens=task.max_new_tokens,
        verbatim=task.verbatim,
        stop=task.stop,
    )


def _twice(names: list[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)
