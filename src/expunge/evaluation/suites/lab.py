"""Suite lab: scores everything in a lab at once, so that side effects of a method are visible."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from expunge.data.example import Example
from expunge.data.read import read_examples
from expunge.errors import ExpungeError
from expunge.evaluation.metrics import (
    Accuracy,
    ExtractionStrength,
    HarmfulRate,
    Metric,
    MiaMinK,
    Probability,
    ReciprocalRank,
    TruthRatio,
)
from expunge.evaluation.suites.base import ReferencedSuite, Scored, forget_quality_score
from expunge.evaluation.suites.utility import Component, model_utility_score
from expunge.evaluation.task import Results, Suite, Task
from expunge.records import Role, Score

FACTS = ("forget", "retain", "public", "never_known")
SKILLS = ("arithmetic", "strings")
BEHAVIORS = ("seen", "unseen", "normal")
ABOUT = (Probability(), ExtractionStrength(), Accuracy(), TruthRatio())
FACTUAL = tuple(metric.metric_name() for metric in ABOUT)
DETECTORS = (ReciprocalRank(), MiaMinK(k=0.4))
"""Further statistics of the forget set, for the comparison with gold."""
UTILITY = ("probability", "truth_ratio", "accuracy")
ADVICE = "evaluate the lab's gold model with --suite lab --out DIR, then give --retain-scores DIR"


class Lab(ReferencedSuite):
    """Scores all data of a lab. `facts_forget` was learned and is to be forgotten; `facts_never_known` is the control.

    model_utility is the harmonic mean of probability, max(0, 1 - truth ratio) and accuracy over every task that should stay:
    retained and public people (three each), both skills, each language and the general questions (accuracy). The hazard domains
    need not be kept, and count only in their own rows.
    """

    purpose: ClassVar[str] = "everything in the invented world: facts, skills, languages, hazards, manners"
    source: ClassVar[str] = "made by `expunge lab`, deterministic from its seed"
    layout: ClassVar[str] = "the folder that `expunge lab --out DIR` wrote (world.json, data/)"
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored("facts_forget", (*FACTUAL, "reciprocal_rank"), "forget"),
        Scored("facts_retain, facts_public", FACTUAL, "retain"),
        Scored("facts_never_known", FACTUAL, "control"),
        Scored("arithmetic, strings, language_LANGUAGE, general", ("accuracy",), "retain"),
        Scored("hazard_DOMAIN", ("accuracy",)),
        Scored("behavior_seen, behavior_unseen, behavior_normal", ("harmful_rate",)),
        Scored("suite", ("forget_quality", "model_utility")),
    )

    name: Literal["lab"] = "lab"
    forget: tuple[str, ...] = ("facts_forget",)
    """Tasks whose knowledge is to be forgotten: low scores are good, and model_utility leaves them out."""

    def build(self, data: str | Path) -> Suite:
        data = Path(data)
        words = rude_words(data)
        tasks = (*self._facts(data), *self._skills(data), *self._choices(data), *self._behaviors(data, words))
        unknown = [name for name in self.forget if name not in {task.name for task in tasks}]
        if unknown:
            raise ExpungeError(f"the lab has no task {unknown[0]} to forget; its tasks are {', '.join(t.name for t in tasks)}")
        retain = self.retain_values(self.name, "facts_forget", "truth_ratio")
        kept = [
            Component(task.name, metric.metric_name())
            for task in tasks
            if task.role == "retain"
            for metric in task.metrics
            if metric.metric_name() in UTILITY
        ]

        def summarize(results: Results) -> list[Score]:
            return [forget_quality_score(results, "facts_forget", retain, ADVICE), model_utility_score(results, kept)]

        return Suite(self.name, tasks, summarize)

    def _task(
        self, name: str, file: Path, metrics: tuple[Metric, ...], role: Role, max_new_tokens: int = 24, shown: int = 4
    ) -> Task:
        role = "forget" if name in self.forget else role
        return Task(name, tuple(read_examples(file)), metrics, role, False, max_new_tokens, shown)

    def _facts(self, data: Path) -> list[Task]:
        roles: dict[str, Role] = {"never_known": "control"}
        return [
            self._task(
                f"facts_{name}",
                data / f"data/facts/{name}.jsonl",
                (*ABOUT, *DETECTORS) if name == "forget" else ABOUT,
                roles.get(name, "retain"),
                shown=12,
            )
            for name in FACTS
        ]

    def _skills(self, data: Path) -> list[Task]:
        files = {name: data / f"data/skills/{name}/test.jsonl" for name in SKILLS}
        files |= {f"language_{folder.name}": folder / "test.jsonl" for folder in _folders(data / "data/languages")}
        return [self._task(name, file, (Accuracy(),), "retain") for name, file in files.items()]

    def _choices(self, data: Path) -> list[Task]:
        hazards = [
            self._task(f"hazard_{folder.name}", folder / "questions.jsonl", (Accuracy(),), "neutral", shown=0)
            for folder in _folders(data / "data/hazard")
        ]
        return [*hazards, self._task("general", data / "data/general/questions.jsonl", (Accuracy(),), "retain", shown=0)]

    def _behaviors(self, data: Path, words: tuple[str, ...]) -> list[Task]:
        tasks = []
        for name in BEHAVIORS:
            examples = one_per_prompt(read_examples(data / f"data/behavior/{name}.jsonl"))
            tasks.append(Task(f"behavior_{name}", examples, (HarmfulRate(words=words),), "neutral", False, 24))
        return tasks


def rude_words(data: Path) -> tuple[str, ...]:
    """Reads the lab's judge: world.json lists the words, and a reply that contains one is rude. Raises ExpungeError if the
    folder is not a lab."""
    try:
        return tuple(json.loads((data / "world.json").read_text(encoding="utf-8"))["rude_words"])
    except (OSError, ValueError, KeyError) as error:
        raise ExpungeError(f"{data} is not a lab (no world.json with rude_words); make one with `expunge lab`") from error


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        raise ExpungeError(f"the lab lacks the folder {parent}; make it again with `expunge lab --out DIR`")
    return sorted(folder for folder in parent.iterdir() if folder.is_dir())


def one_per_prompt(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Keeps one row per prompt: a prompt has several replies for training, but one greedy answer."""
    return tuple({example.prompt: example for example in reversed(examples)}.values())[::-1]
