"""Groups related tasks by their names and common metric, for figures and for the mean over what was to be kept."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from expunge.records import Score
from expunge.report.glossary import TASK_FAMILIES, interval, meaning, number, task_label
from expunge.report.read import RunRecord

SHARES = (
    "accuracy_normalized", "accuracy", "mc2", "exact_match", "exact_match_strict_match", "pass_at_1", "f1", "rouge_l_recall",
    "probability", "extraction_strength", "exact_memorization", "containment", "harmful_rate", "toxicity",
)  # fmt: skip
"""Metrics between 0 and 1, in the order in which a task's main metric is chosen: per character if lm-eval gives both, the
strict number of GSM8K, mc2 of TruthfulQA. For the ten tasks of SPUNGE these are the metrics of its mean."""
FEWEST_KEPT = 5
"""Smallest number of tasks to keep that get a figure of their own."""
RIMS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
MOST = 16
"""Largest number of spokes whose names fit."""


class TaskMetric(NamedTuple):
    """One metric on one task."""

    task: str
    metric: str


class Group(NamedTuple):
    """Tasks of one suite shown together."""

    suite: str
    name: str
    """A word for file names: `toxigen`, `wmdp`, `kept`."""
    title: str
    spokes: tuple[TaskMetric, ...]

    def metric(self) -> str | None:
        """Returns the metric of all tasks, or None if they differ."""
        metrics = {asked.metric for asked in self.spokes}
        return metrics.pop() if len(metrics) == 1 else None

    def label(self, asked: TaskMetric) -> str:
        """Returns the label of a spoke: the task without the words that all tasks of the group begin with."""
        family = TASK_FAMILIES.get(self.name)
        whole = task_label(asked.task)
        return whole.removeprefix(f"{family}: ") if family else whole


def main_metric(metrics: Sequence[str]) -> str | None:
    """Returns the main metric of a task, or None if it has none between 0 and 1."""
    return next((metric for metric in SHARES if metric in metrics), None)


def kept(suite: str, models: Sequence[RunRecord]) -> tuple[TaskMetric, ...]:
    """Returns what was to be kept: the tasks over which the suite itself takes its mean; otherwise each task with its main
    metric on which high is good for the first of `models`.

    A task that pools others (`mmlu` over `mmlu_law`, ...) stands for them, unless nothing else would be left.
    """
    by_task = _scores(suite, models)
    named = (asked.split("/", 1) for asked in _over(suite, models))
    over = tuple(TaskMetric(task, metric) for task, metric in named if metric in by_task.get(task, {}))
    if over:
        return over
    own = {task for task in by_task if any(model.ids(suite, task) for model in models)}
    tasks = [task for task in by_task if not any(task.startswith(f"{other}_") for other in by_task)]
    found = _to_keep(by_task, _counted_once(tasks, own))
    return found if len(found) > 1 else _to_keep(by_task, _counted_once([task for task in by_task if task not in tasks], own))


def _counted_once(tasks: Sequence[str], own: Collection[str]) -> list[str]:
    """Removes tasks that pool some of the others under a name of the same family, and have no samples of their own."""
    families = {task.partition("_")[0] for task in tasks if task in own}
    return [task for task in tasks if task in own or "_" not in task or task.partition("_")[0] not in families]


def _over(suite: str, models: Sequence[RunRecord]) -> tuple[str, ...]:
    """Returns `TASK/METRIC` of each task that a suite-wide mean is over, if high is good for it."""
    scores = [score for model in models if (e := model.evaluation(suite)) for score in e.scores]
    return next((s.over for s in scores if s.task == "suite" and s.over and s.higher_is_better), ())


def to_go(suite: str, models: Sequence[RunRecord]) -> tuple[TaskMetric, ...]:
    """Returns the tasks on which low is good, usually those to forget, with their main metric; one that pools others stands
    for them."""
    by_task = _scores(suite, models)
    tasks = [task for task in by_task if not any(task.startswith(f"{other}_") for other in by_task)]
    asked = ((task, main_metric(list(by_task[task]))) for task in tasks)
    return tuple(TaskMetric(task, m) for task, m in asked if m is not None and by_task[task][m].higher_is_better is False)


def _to_keep(by_task: dict[str, dict[str, Score]], tasks: Sequence[str]) -> tuple[TaskMetric, ...]:
    asked = ((task, main_metric(list(by_task[task]))) for task in tasks)
    return tuple(TaskMetric(task, m) for task, m in asked if m is not None and by_task[task][m].higher_is_better)


def groups(suite: str, models: Sequence[RunRecord]) -> list[Group]:
    """Returns the figures of a suite, by the tasks and directions of the first model that has each score.

    First the tasks to keep, if there are many; then each family of tasks (`wmdp_bio`, `wmdp_chem`, ...) with one metric that
    all of them have. A task with the family's own name pools the others and is not a member; if a family is too large for a
    figure, tasks that pool others (without samples of their own) stand for it. Families with members both to forget and to keep
    are not drawn.
    """
    by_task, found = _scores(suite, models), list[Group]()
    own = {task for task in by_task if any(model.ids(suite, task) for model in models)}
    stays = kept(suite, models)
    if FEWEST_KEPT <= len(stays) <= MOST:
        found.append(Group(suite, "kept", "What was to be kept", stays))
    for name, tasks in _families(by_task).items():
        single = _counted_once(tasks, own)
        members = single if len(single) <= MOST else [task for task in tasks if task not in single]
        metric = next((m for m in SHARES if all(m in by_task[task] for task in members)), None)
        if metric is None or not 2 <= len(members) <= MOST:
            continue
        spokes = tuple(TaskMetric(task, metric) for task in members)
        directions = {by_task[task][metric].higher_is_better for task in members} - {None}
        if len(directions) < 2 and not any(set(spokes) <= set(group.spokes) for group in found):
            found.append(Group(suite, name, f"{TASK_FAMILIES.get(name, name.capitalize())}: {meaning(metric).label}", spokes))
    return found


def _scores(suite: str, models: Sequence[RunRecord]) -> dict[str, dict[str, Score]]:
    """Returns task -> metric -> the score of the first model that has a direction, or else of the first model; without scores
    over the whole suite. The original may have been scored without roles."""
    by_task: dict[str, dict[str, Score]] = {}
    for model in models:
        evaluation = model.evaluation(suite)
        for score in evaluation.scores if evaluation else ():
            if score.task != "suite":
                by_metric = by_task.setdefault(score.task, {})
                if by_metric.setdefault(score.metric, score).higher_is_better is None:
                    by_metric[score.metric] = score
    return by_task


def _families(by_task: dict[str, dict[str, Score]]) -> dict[str, list[str]]:
    """Returns first word -> tasks that begin with it and continue; numbered ones are the steps of a series, not groups."""
    families: dict[str, list[str]] = {}
    for task in by_task:
        first, _, rest = task.partition("_")
        if rest and not rest.isdigit() and any(meaning(metric).style == "share" for metric in by_task[task]):
            families.setdefault(first, []).append(task)
    return families


def score_of(model: RunRecord, suite: str, asked: TaskMetric) -> Score | None:
    """Returns the score, if it has a value."""
    score = model.score(suite, asked.task, asked.metric)
    return score if score and score.value is not None else None


def rim(group: Group, models: Sequence[RunRecord]) -> float:
    """Returns a round number that is at least every value and interval of a group, where its scale ends."""
    scores = [score for model in models for asked in group.spokes if (score := score_of(model, group.suite, asked))]
    most = max([v for s in scores for v in (s.value, s.high) if v is not None], default=1.0)
    return next((r for r in RIMS if most <= r + 1e-9), most)


def said(group: Group, model: str, asked: TaskMetric, score: Score) -> str:
    """Returns the tooltip of a corner or a bar."""
    between = interval(score.metric, score.low, score.high)
    value = number(score.metric, score.value if score.value is not None else 0.0)
    return (
        f"{model}, {group.label(asked)}: {meaning(score.metric).label} {value}{f' ({between})' if between else ''}, n = {score.n}"
    )
