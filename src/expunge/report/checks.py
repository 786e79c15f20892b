"""Checks whether models are comparable: the same samples, judges, suites and start model."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from expunge.report.glossary import task_label
from expunge.report.groups import TaskMetric
from expunge.report.integrity import broken_up
from expunge.report.read import RunRecord

JUDGED = frozenset(
    {"harmful_rate", "toxicity", "expected_maximum_toxicity", "toxicity_probability", "similarity", "bert_score", "meteor"}
)
"""Metrics that are judges' verdicts."""
NAMED = 3
"""Number of tasks that a warning names; it counts the others."""


class Shared(NamedTuple):
    """How the samples of one task compare between two models."""

    task: str
    both: int
    mine: int
    theirs: int

    def same(self) -> bool:
        return self.both == self.mine == self.theirs

    def __str__(self) -> str:
        return f"{task_label(self.task)} ({self.both} of {max(self.mine, self.theirs)} in common)"


def shared(model: RunRecord, other: RunRecord, suite: str) -> list[Shared]:
    """Returns every task of which both have stored samples."""
    found = (_shared(model, other, suite, task) for task in _tasks(model, suite))
    return [s for s in found if s is not None]


def _shared(model: RunRecord, other: RunRecord, suite: str, task: str) -> Shared | None:
    mine, theirs = model.ids(suite, task), other.ids(suite, task)
    return Shared(task, len(mine & theirs), len(mine), len(theirs)) if mine and theirs else None


def comparable(model: RunRecord, other: RunRecord, suite: str, asked: TaskMetric) -> bool:
    """Returns whether a difference of two scores is meaningful: the same samples, and the same judge if there is one."""
    return same_samples(model, other, suite, asked.task) and (asked.metric not in JUDGED or same_judges(model, other, suite))


def same_samples(model: RunRecord, other: RunRecord, suite: str, task: str) -> bool:
    """Returns whether two scores of a task are of the same samples: by their ids; by those of the whole suite for a score that
    pools tasks; by the counts if no samples are stored."""
    own = _shared(model, other, suite, task)
    if own is not None:
        return own.same()
    if found := shared(model, other, suite):
        return all(s.same() for s in found)
    mine, theirs = _counts(model, suite, task), _counts(other, suite, task)
    return bool(mine) and bool(theirs) and all(mine[metric] == theirs[metric] for metric in mine.keys() & theirs.keys())


def _counts(model: RunRecord, suite: str, task: str) -> dict[str, int]:
    evaluation = model.evaluation(suite)
    return {s.metric: s.n for s in evaluation.scores if s.task == task} if evaluation else {}


def same_judges(model: RunRecord, other: RunRecord, suite: str) -> bool:
    """Returns whether two scores have the same judge: the same files, wherever they are, or the same settings. Unknown for
    evaluations without a recorded judge."""
    mine, theirs = _judges(model, suite), _judges(other, suite)
    return not mine or not theirs or mine == theirs


def _judges(model: RunRecord, suite: str) -> set[str]:
    evaluation = model.evaluation(suite)
    used = evaluation.judges if evaluation else ()
    places = ("model", "revision") if all(judge.fingerprint for judge in used) else ()
    settings = [{k: v for k, v in judge.settings.items() if k not in places} for judge in used]
    return {json.dumps([judge.fingerprint, own], sort_keys=True) for judge, own in zip(used, settings, strict=True)}


def apart(model: RunRecord, other: RunRecord, suite: str) -> bool:
    """Returns whether two models have no common samples, or different judges, so that no figure may show both."""
    found = shared(model, other, suite)
    return (bool(found) and not any(s.both for s in found)) or not same_judges(model, other, suite)


def notices(runs: Sequence[RunRecord], original: RunRecord | None, gold: RunRecord | None) -> list[str]:
    """Returns sentences about what makes the models not comparable; empty if nothing does."""
    models = [m for m in (original, gold, *runs) if m]
    suites = list(dict.fromkeys(e.suite for m in models for e in m.evaluations))
    apart = [text for model in models for text in broken_up(model)]
    return [
        *apart,
        *_unscored(runs, suites),
        *(text for suite in suites for text in _other_data(models, suite)),
        *_other_start(runs),
        *_same_models(runs, original, gold),
    ]


def _unscored(runs: Sequence[RunRecord], suites: Sequence[str]) -> list[str]:
    scored = [run for run in runs if run.evaluations]
    without = [run.name for run in runs if not run.evaluations and (run.artifact or run.steps)]
    texts = []
    if without:
        texts.append(
            f"Not evaluated, and so in no table of scores: {', '.join(without)}. `expunge evaluate RUN --suite NAME` does it."
        )
    for suite in suites:
        lacking = [run.name for run in scored if not run.evaluation(suite)]
        if lacking and len(lacking) < len(scored):
            texts.append(f"Without scores of the suite {suite}: {', '.join(lacking)}.")
    return texts


def _other_data(models: Sequence[RunRecord], suite: str) -> list[str]:
    """Compares with the first model that was scored: the original, if there is one."""
    scored = [m for m in models if m.evaluation(suite)]
    texts = []
    for model in scored[1:]:
        found = shared(model, scored[0], suite)
        if not same_judges(model, scored[0], suite):
            texts.append(
                f"{model.name} and {scored[0].name} were scored by different judges in the suite {suite}: what these said is not "
                "compared, and no figure holds both."
            )
        differing = [s for s in found if not s.same()]
        if not found:
            texts += _other_counts(model, scored[0], suite)
        elif differing:
            more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
            named = ", ".join(map(str, differing[:NAMED])) + more
            nothing = not any(s.both for s in found)
            then = (
                "its scores stand for themselves, and nothing is compared"
                if nothing
                else "differences are taken over the samples in common, and other scores have no colour"
            )
            texts.append(
                f"{model.name} and {scored[0].name} were scored on different samples of the suite {suite}: {named}; {then}."
            )
    return texts


def _other_counts(model: RunRecord, other: RunRecord, suite: str) -> list[str]:
    tasks = [
        task for task in _tasks(model, suite) if task in _tasks(other, suite) and not same_samples(model, other, suite, task)
    ]
    if not tasks:
        return []
    named = ", ".join(map(task_label, tasks[:NAMED]))
    return [f"{model.name} and {other.name} were scored on different numbers of samples in the suite {suite}: {named}."]


def _other_start(runs: Sequence[RunRecord]) -> list[str]:
    starts: dict[str, list[str]] = {}
    for run in runs:
        if run.provenance:
            starts.setdefault(run.provenance.base_sha256, []).append(run.name)
    if len(starts) < 2:
        return []
    groups = "; ".join(", ".join(names) for names in starts.values())
    return [f"The runs start from {len(starts)} different models ({groups}), and one original cannot stand for all of them."]


def _same_models(runs: Sequence[RunRecord], original: RunRecord | None, gold: RunRecord | None) -> list[str]:
    """Names models that are a reference themselves, by the content of their files."""
    pairs = [(run, other) for run in runs for other in (original, gold) if other]
    pairs += [(original, gold)] if original and gold else []
    return [
        f"{model.name} is the very model that was given as {other.name} (the content of its files is the same): what compares "
        "the two says nothing."
        for model, other in pairs
        if _fingerprints(model) & _fingerprints(other)
    ]


def _fingerprints(model: RunRecord) -> set[str]:
    return {found.fingerprint for found in model.evaluations if found.fingerprint is not None}


def _tasks(model: RunRecord, suite: str) -> list[str]:
    evaluation = model.evaluation(suite)
    return list(dict.fromkeys(s.task for s in evaluation.scores)) if evaluation else []
