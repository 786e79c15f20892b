"""Suite mmlu: 57 subjects, as general knowledge to keep or, by subject, as knowledge to forget."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from expunge.data.corpora.mmlu import CATEGORIES, LAYOUT, SUBJECTS, SUBSETS, ask, read_mmlu
from expunge.data.example import Example
from expunge.errors import ExpungeError, nearest
from expunge.evaluation.metrics import Accuracy, PromptCut
from expunge.evaluation.suites.base import Scored, SuiteSpec
from expunge.evaluation.suites.pooled import pooled_score
from expunge.evaluation.task import Results, Suite, Task
from expunge.records import Score

GROUPS: dict[str, tuple[str, ...]] = {**CATEGORIES, **SUBSETS}


class Mmlu(SuiteSpec):
    """One task per subject (`mmlu_SUBJECT`): accuracy among four letters, in lm-eval's words. Besides, where all of
    their subjects are scored: `mmlu` over all questions, the four categories (stem, humanities, social_sciences, other), and the
    groups that are forgotten with a neighbor to keep: economics and econometrics, law and jurisprudence, physics and math.
    Chance is 0.25."""

    purpose: ClassVar[str] = "57 subjects, as general knowledge to keep or, by subject, as knowledge to forget"
    source: ClassVar[str] = "Hendrycks et al. 2021, arXiv 2009.03300; prompts of lm-eval's mmlu"
    layout: ClassVar[str] = f"{LAYOUT}; hub id cais/mmlu"
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored("mmlu_SUBJECT", ("accuracy", "prompt_cut"), "retain"),
        Scored("mmlu, mmlu_CATEGORY, mmlu_GROUP", ("accuracy",), "retain"),
    )

    name: Literal["mmlu"] = "mmlu"
    tasks: tuple[str, ...] = ()
    """Subjects, categories or groups; empty for all 57."""
    forget: tuple[str, ...] = ()
    """Subjects, categories or groups that were to be forgotten, for which a low score is good."""
    shots: int = Field(5, ge=0, le=5)
    """Worked questions before each, the first ones of the subject's dev set."""

    def build(self, data: str | Path) -> Suite:
        subjects, gone = _subjects(self.tasks) or SUBJECTS, _subjects(self.forget)
        by_subject = {
            subject: Task(
                f"mmlu_{subject}",
                questions(data, subject, self.shots),
                (Accuracy(), PromptCut()),
                "forget" if subject in gone else "retain",
                verbatim=True,
            )
            for subject in subjects
        }

        def summarize(results: Results) -> list[Score]:
            whole = {name: members for name, members in GROUPS.items() if len(members) > 1 and set(members) <= set(subjects)}
            pools = {"mmlu": SUBJECTS} if set(subjects) == set(SUBJECTS) else {}
            pools |= {f"mmlu_{name}": members for name, members in whole.items()}
            return [pooled_score(results, name, [by_subject[s] for s in members], "accuracy") for name, members in pools.items()]

        return Suite(self.name, tuple(by_subject.values()), summarize)


def questions(data: str | Path, subject: str, shots: int) -> tuple[Example, ...]:
    """Returns the test questions of a subject as prompts."""
    worked = read_mmlu(data, subject, "dev")[:shots] if shots else ()
    return tuple(ask(question, worked) for question in read_mmlu(data, subject))


def _subjects(names: Iterable[str]) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        if name not in SUBJECTS and name not in GROUPS:
            known = (*SUBJECTS, *GROUPS)
            raise ExpungeError(f"MMLU has no subject or group '{name}'{nearest(name, known)}; its groups are {', '.join(GROUPS)}")
        found += GROUPS.get(name, (name,))
    return tuple(dict.fromkeys(found))
