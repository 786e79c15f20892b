"""Suites of general ability through lm-eval: any of its tasks, and the ten benchmarks of SPUNGE."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from expunge.errors import ExpungeError
from expunge.evaluation.lm_eval import Harness, Wanted, needed
from expunge.evaluation.lm_eval_tasks import find, tasks_in
from expunge.evaluation.suites.base import Scored, SuiteSpec, no_summary
from expunge.evaluation.task import Suite

HUB = "hub"
LAYOUT = (
    "the word `hub` for lm-eval's published tasks, whose data comes from the hub or its local cache; or a folder of lm-eval task "
    "files (*.yaml), whose tasks take the place of published ones of the same name and may read local files "
    "(dataset_path: json, dataset_kwargs: {data_files: {test: /PATH/test.jsonl}})"
)

SPUNGE = (
    Wanted("arc_challenge", 25, "accuracy_normalized"),
    Wanted("arc_easy", 25, "accuracy_normalized"),
    Wanted("hellaswag", 10, "accuracy_normalized"),
    Wanted("mmlu", 5, "accuracy"),
    Wanted("truthfulqa_mc2", 0, "mc2"),
    Wanted("winogrande", 5, "accuracy"),
    Wanted("gsm8k", 5, "exact_match_strict_match"),
    Wanted("mathqa", 5, "accuracy_normalized"),
    Wanted("piqa", 5, "accuracy_normalized"),
    Wanted("pubmedqa", 5, "accuracy"),
)
"""Task, shots, and the metric in the mean. The shots are those of SPUNGE's appendix (its text has 5 for arc_easy). The paper
does not name the metrics, so they are those of the Open LLM Leaderboard if it has the task, and acc_norm if lm-eval gives it."""


class LmEval(SuiteSpec):
    """Any tasks, groups and tags of lm-eval, with its own prompts, filters and metrics. These keep their names but for acc,
    called accuracy, acc_norm, called accuracy_normalized, and the acc of truthfulqa_mc2, called mc2. A task whose data cannot be
    had is null with the reason."""

    purpose: ClassVar[str] = "any tasks of lm-eval"
    source: ClassVar[str] = "lm-eval 0.4.13 (Gao et al. 2024); log-probabilities from this library's engine, equal up to rounding"
    layout: ClassVar[str] = LAYOUT
    scored: ClassVar[tuple[Scored, ...]] = (Scored("TASK", ("accuracy", "accuracy_normalized", "prompt_cut"), "retain"),)

    name: Literal["lm_eval"] = "lm_eval"
    tasks: tuple[str, ...] = ()
    """Names of lm-eval; empty for all tasks of the folder."""
    shots: int | None = Field(None, ge=0)
    """Worked examples before each question; left out, each task's own number."""
    forget: tuple[str, ...] = ()
    """Tasks that were to be forgotten, for which a low score is good."""

    def build(self, data: str | Path) -> Suite:
        folder = _folder(data)
        if not self.tasks and folder is None:
            raise ExpungeError("the suite lm_eval needs names of tasks: tasks=arc_easy,piqa; or a folder with tasks of its own")
        names = self.tasks or tasks_in(folder or Path())
        for name in self.forget:
            if name not in names:
                raise ExpungeError(f"forget={name} is none of the tasks {', '.join(names)}; name one of them")
        wanted = tuple(Wanted(name, self.shots) for name in names)
        return Suite(self.name, (), no_summary, Harness(find(names, folder), wanted, frozenset(self.forget)))


class SpungeGeneral(SuiteSpec):
    """The ten benchmarks of SPUNGE's appendix with their shots: ARC challenge and easy (25), HellaSwag (10), MMLU, Winogrande,
    GSM8K, MathQA, PIQA, PubMedQA (5) and TruthfulQA (0); `general_average` is their plain mean, null when one is missing. A mean
    hides the collapse of one task (GSM8K in the paper): read the tasks too."""

    purpose: ClassVar[str] = "general ability: the ten benchmarks of SPUNGE"
    source: ClassVar[str] = "SPUNGE, arXiv 2406.11780, appendix; tasks of lm-eval 0.4.13"
    layout: ClassVar[str] = LAYOUT
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored(", ".join(wanted.name for wanted in SPUNGE), ("accuracy", "accuracy_normalized", "prompt_cut"), "retain"),
        Scored("suite", ("general_average",), "retain"),
    )

    name: Literal["spunge_general"] = "spunge_general"

    def build(self, data: str | Path) -> Suite:
        index = find([wanted.name for wanted in SPUNGE], _folder(data))
        return Suite(self.name, (), no_summary, Harness(index, SPUNGE, average="general_average"))


def _folder(data: str | Path) -> Path | None:
    """Returns the folder of task files, or None for the published ones only."""
    needed()
    if data == HUB:
        return None
    if not Path(data).is_dir():
        raise ExpungeError(f"there is no folder {data}; the data of this suite is {LAYOUT}")
    return Path(data).resolve()
