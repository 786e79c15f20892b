"""Suite skills: mathematics, code, reading comprehension in seven languages, and general knowledge."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import ClassVar, Literal, get_args

from pydantic import Field

from expunge.data.corpora import gsm8k, humaneval, mbpp, mmlu, squad
from expunge.data.corpora.squad import LANGUAGES, Language
from expunge.data.example import Example
from expunge.errors import ExpungeError
from expunge.evaluation.metrics import F1, Accuracy, Containment, ExactMatch, PassAt1, PromptCut
from expunge.evaluation.suites.base import Scored, SuiteSpec, no_summary
from expunge.evaluation.suites.mmlu import questions
from expunge.evaluation.task import Suite, Task
from expunge.records import Role

Skill = Literal["gsm8k", "mbpp", "humaneval", "languages", "mmlu"]
SKILLS: tuple[Skill, ...] = get_args(Skill)

MBPP_STOPS = ('\n"""', "\nassert", "\nif __name__", "\nprint(")
HUMANEVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Beginnings of new definitions in a file, where an answer ends."""


class Skills(SuiteSpec):
    """Tasks `gsm8k` (exact_match of the number), `mbpp` and `humaneval` (pass_at_1), `language_en` ... `language_hi`
    (exact_match, f1, containment) and `mmlu` (accuracy). Greedy answers; `prompt_cut` tells how many prompts did not fit.

    What differs from the released evaluation of skill unlearning: greedy instead of one sample at temperature 0.8 (noise of
    1.3 points), exact numbers instead of floats, own worked problems, MLQA's official scores beside containment.
    """

    purpose: ClassVar[str] = "mathematics, code, reading in seven languages, general knowledge"
    source: ClassVar[str] = (
        "skills, prompts and scores of arXiv 2503.21730, with the corrections that `expunge suites skills` names"
    )
    layout: ClassVar[str] = (
        "a folder with gsm8k/test.jsonl, mbpp/mbpp.jsonl, humaneval/HumanEval.jsonl.gz, xquad/xquad.LANGUAGE.json or "
        "mlqa/test/test-context-LANGUAGE-question-LANGUAGE.json, and mmlu/{test,dev}/SUBJECT_{test,dev}.csv; or the word `hub`"
    )
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored("gsm8k", ("exact_match", "prompt_cut"), "retain"),
        Scored("mbpp, humaneval", ("pass_at_1", "prompt_cut"), "retain"),
        Scored("language_LANGUAGE", ("exact_match", "f1", "containment", "prompt_cut"), "retain"),
        Scored("mmlu", ("accuracy", "prompt_cut"), "retain"),
    )

    name: Literal["skills"] = "skills"
    tasks: tuple[Skill, ...] = SKILLS
    """gsm8k, mbpp, humaneval, languages, mmlu; data is needed only for the chosen ones."""
    languages: tuple[Language, ...] = LANGUAGES
    """en, de, es, ar, zh, vi, hi."""
    forget: tuple[str, ...] = ()
    """Tasks that were to be forgotten, such as gsm8k or language_de, for which a low score is good."""
    allow_code_execution: bool = False
    """Run the programs that the model writes, in the sandbox (its limits: `expunge.evaluation.sandbox`). Without it pass_at_1 is
    null with the reason."""
    gsm8k_shots: int = Field(8, ge=0, le=8)
    """Worked problems before each question; they are this library's own."""
    mbpp_shots: int = Field(0, ge=0, le=3)
    """0: a docstring with task and first test (EvalPlus). 1 to 3: the prompt of the MBPP paper, with its worked tasks."""
    mmlu_shots: int = Field(5, ge=0, le=5)
    """Worked questions before each."""

    def build(self, data: str | Path) -> Suite:
        make: dict[Skill, Callable[[str | Path], list[Task]]] = {
            "gsm8k": self._gsm8k,
            "mbpp": self._mbpp,
            "humaneval": self._humaneval,
            "languages": self._languages,
            "mmlu": self._mmlu,
        }
        tasks = tuple(task for skill in self.tasks for task in make[skill](data))
        unknown = [name for name in self.forget if name not in {task.name for task in tasks}]
        if unknown:
            raise ExpungeError(f"there is no task {unknown[0]} to forget; the tasks are {', '.join(task.name for task in tasks)}")
        return Suite(self.name, tasks, no_summary)

    def _role(self, name: str) -> Role:
        return "forget" if name in self.forget else "retain"

    def _gsm8k(self, data: str | Path) -> list[Task]:
        problems = gsm8k.read_gsm8k(_source(data, "gsm8k", gsm8k.HUB))
        asked = tuple(replace(p, prompt=gsm8k.ask(p.prompt or "", self.gsm8k_shots)) for p in problems)
        metrics = (ExactMatch(reading="number"), PromptCut())
        return [Task("gsm8k", asked, metrics, self._role("gsm8k"), max_new_tokens=256, verbatim=True, stop=("Q:",))]

    def _mbpp(self, data: str | Path) -> list[Task]:
        every = {e.attributes["task_id"]: e for e in mbpp.read_mbpp(_source(data, "mbpp", mbpp.HUB), "all")}
        shots = [every[number] for number in mbpp.SHOTS[: self.mbpp_shots]]
        asked = tuple(
            _with_tests(every[number], mbpp.ask(every[number], shots)) for number in mbpp.TASKS["test"] if number in every
        )
        stop = ("[DONE]",) if shots else MBPP_STOPS
        return [Task("mbpp", asked, self._code(), self._role("mbpp"), max_new_tokens=256, verbatim=True, stop=stop)]

    def _humaneval(self, data: str | Path) -> list[Task]:
        functions = humaneval.read_humaneval(_source(data, "humaneval", humaneval.HUB))
        asked = tuple(replace(f, attributes={**f.attributes, "before": f.prompt or ""}) for f in functions)
        role = self._role("humaneval")
        return [Task("humaneval", asked, self._code(), role, max_new_tokens=512, verbatim=True, stop=HUMANEVAL_STOPS)]

    def _code(self) -> tuple[PassAt1, PromptCut]:
        return PassAt1(allow_code_execution=self.allow_code_execution), PromptCut()

    def _languages(self, data: str | Path) -> list[Task]:
        folder = "mlqa" if data == "hub" or (Path(data) / "mlqa").is_dir() else "xquad"
        source = _source(data, folder, squad.MLQA)
        metrics = (ExactMatch(), F1(), Containment(), PromptCut())
        return [
            Task(
                f"language_{language}",
                tuple(replace(e, prompt=f"{e.prompt}\n\nAnswer:") for e in squad.read_squad(source, language)),
                metrics,
                self._role(f"language_{language}"),
                max_new_tokens=64,
                verbatim=True,
                stop=("\n",),
            )
            for language in self.languages
        ]

    def _mmlu(self, data: str | Path) -> list[Task]:
        """Makes one task of all subjects in turn, so that the first N questions cover all of them."""
        source = _source(data, "mmlu", mmlu.HUB)
        subjects = [questions(source, subject, self.mmlu_shots) for subject in mmlu.SUBJECTS]
        asked = tuple(example for example in chain(*zip_longest(*subjects)) if example is not None)
        return [Task("mmlu", asked, (Accuracy(), PromptCut()), self._role("mmlu"), verbatim=True)]


def _source(data: str | Path, name: str, hub: str) -> str | Path:
    return hub if data == "hub" else Path(data) / name


def _with_tests(task: Example, prompt: str) -> Example:
    tests = f"{task.attributes['setup']}\n{task.attributes['tests']}"
    return replace(task, prompt=prompt, attributes={**task.attributes, "tests": tests})
