"""Suites of multiple-choice questions: `choices` over your own file, and ARC."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from expunge.data.corpora.arc import LAYOUT, Level, read_arc
from expunge.data.questions import continued, lettered
from expunge.data.read import read_examples
from expunge.evaluation.metrics import Accuracy, AccuracyNormalized, PromptCut
from expunge.evaluation.suites.base import Scored, SuiteSpec, no_summary
from expunge.evaluation.task import Suite, Task
from expunge.records import Role


class Choices(SuiteSpec):
    """One task, `choices`: accuracy on any file of questions with choices, compared as letters or as continuations."""

    purpose: ClassVar[str] = "any file of multiple-choice questions"
    source: ClassVar[str] = "own data; the two forms are those of lm-eval's mmlu (letters) and arc (continuation)"
    layout: ClassVar[str] = "a file (JSONL, CSV, Parquet, hub id) with prompt (or question), choices and answer, the index from 0"
    scored: ClassVar[tuple[Scored, ...]] = (Scored("choices", ("accuracy", "accuracy_normalized", "prompt_cut"), "retain"),)

    name: Literal["choices"] = "choices"
    style: Literal["letters", "continuation"] = "letters"
    """letters: the choices are shown and their letters compared. continuation: the choices' texts are compared."""
    header: str = ""
    """First line of each prompt, such as `The following are multiple choice questions (with answers) about rivers.`"""
    role: Role = "retain"
    """forget, retain or neutral, which decides whether high is good."""

    def build(self, data: str | Path) -> Suite:
        asked = lettered if self.style == "letters" else continued
        examples = tuple(asked(question, self.header) for question in read_examples(data))
        metrics = (Accuracy(), PromptCut()) if self.style == "letters" else (Accuracy(), AccuracyNormalized(), PromptCut())
        return Suite(self.name, (Task("choices", examples, metrics, self.role, verbatim=True),), no_summary)


class Arc(SuiteSpec):
    """Tasks `arc_easy` and `arc_challenge`: accuracy (lm-eval's acc) and accuracy_normalized (acc_norm, the usual score)."""

    purpose: ClassVar[str] = "school science questions, easy and challenging"
    source: ClassVar[str] = "Clark et al. 2018, arXiv 1803.05457; prompts of lm-eval's arc_easy and arc_challenge"
    layout: ClassVar[str] = f"{LAYOUT}; hub id allenai/ai2_arc"
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored("arc_easy, arc_challenge", ("accuracy", "accuracy_normalized", "prompt_cut"), "retain"),
    )

    name: Literal["arc"] = "arc"
    tasks: tuple[Level, ...] = ("easy", "challenge")
    """Sets: easy, challenge."""
    shots: int = Field(0, ge=0, le=25)
    """Worked questions before each, the first ones of the training set (25 in SPUNGE's table)."""

    def build(self, data: str | Path) -> Suite:
        return Suite(self.name, tuple(self._task(data, level) for level in self.tasks), no_summary)

    def _task(self, data: str | Path, level: Level) -> Task:
        worked = read_arc(data, level, "train")[: self.shots] if self.shots else ()
        examples = tuple(continued(question, shots=worked) for question in read_arc(data, level))
        return Task(f"arc_{level}", examples, (Accuracy(), AccuracyNormalized(), PromptCut()), "retain", verbatim=True)
