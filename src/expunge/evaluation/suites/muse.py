"""Suite MUSE: memorization, knowledge and privacy leakage of a forgotten corpus, and retained knowledge."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from expunge.data.corpora.muse import LAYOUT, ask, read_muse
from expunge.evaluation.metrics import (
    ExactMemorization,
    ExtractionStrength,
    Metric,
    MiaLoss,
    MiaMinK,
    MiaMinKPlusPlus,
    MiaZlib,
    Perplexity,
    Rouge,
)
from expunge.evaluation.suites.attacked import TaskPair, attack_scores, privleak_score, reference_scores
from expunge.evaluation.suites.base import AttackedSuite, Scored
from expunge.evaluation.task import Results, Suite, Task
from expunge.records import Role, Score

SETS = TaskPair("privleak_forget", "privleak_holdout")
ATTACKS: tuple[Metric, ...] = (MiaLoss(), MiaZlib(), MiaMinK(k=0.4), MiaMinKPlusPlus(k=0.4))
NAMES = [attack.metric_name() for attack in ATTACKS]
STOPS = ("\n\n", "\nQuestion", "Question:")
ADVICE = (
    "evaluate a model trained without it with --suite muse and --out DIR, then give --retain-scores DIR; or take the constant of "
    "MUSE's own retrained model, --options retain_auc=0.4772 (News) or retain_auc=0.5393 (Books), right for that model only"
)
Part = Literal["scal_1", "scal_2", "scal_3", "scal_4", "sust_1", "sust_2", "sust_3", "sust_4"]


class Muse(AttackedSuite):
    """`verbmem_forget`: ROUGE-L F1 of the greedy continuation (128 tokens) with the text; `knowmem_forget` and `knowmem_retain`:
    ROUGE-L F1 of answers behind in-context examples (32 tokens); `privleak` of mia_min_k (k = 40 %), and the AUC of each attack.

    MUSE prints all but privleak times 100. Tasks of scalability and sustainability (`parts`) look at the forget sets that were
    used there. Prompts are MUSE's own, without a template; raw texts longer than max_length tokens lose their end.
    """

    purpose: ClassVar[str] = "verbatim memory, knowledge and privacy leakage of a forgotten corpus, and retained knowledge"
    source: ClassVar[str] = "Shi et al. 2024, arXiv 2407.06460; figures as in its released code"
    layout: ClassVar[str] = f"{LAYOUT}; hub ids muse-bench/MUSE-News, muse-bench/MUSE-Books"
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored("verbmem_forget", ("rouge", "extraction_strength", "exact_memorization"), "forget"),
        Scored("knowmem_forget", ("rouge",), "forget"),
        Scored("knowmem_retain", ("rouge",), "retain"),
        Scored("scal_N, sust_N", ("perplexity", "extraction_strength", "exact_memorization"), "forget"),
        Scored("suite", ("privleak", *NAMES, "mia_reference", "ATTACK_relative_difference")),
    )

    name: Literal["muse"] = "muse"
    parts: tuple[Part, ...] = ()
    """Forget sets of scalability (scal_1 .. scal_4) and sustainability (sust_1 .. sust_4) to score too, News only."""
    retain_auc: float | None = Field(None, gt=0, le=1)
    """AUC' of the retrained model in MUSE's convention (1 - AUC), if there are no retain scores."""

    def build(self, data: str | Path) -> Suite:
        verbatim = Task(
            "verbmem_forget",
            read_muse(data, "verbmem", "forget"),
            (Rouge(), *_memory()),
            "forget",
            max_new_tokens=128,
            verbatim=True,
            expected_tokens=128,
        )
        tasks = (
            verbatim,
            _knowledge(data, "forget"),
            _knowledge(data, "retain"),
            Task(SETS.forget, read_muse(data, "privleak", "forget"), ATTACKS, "forget"),
            Task(SETS.holdout, read_muse(data, "privleak", "holdout"), ATTACKS, "control"),
            *(_part(data, part) for part in self.parts),
        )
        retain = reference_scores(self.retain_scores, self.name, SETS, NAMES)
        reference = reference_scores(self.reference_scores, self.name, SETS, ["mia_loss"])

        def summarize(results: Results) -> list[Score]:
            leak = privleak_score(results, SETS, retain, retain_auc=self.retain_auc, advice=ADVICE)
            return [leak, *attack_scores(results, SETS, NAMES, retain=retain, reference=reference, advice=ADVICE)]

        return Suite(self.name, tasks, summarize)


def _memory() -> tuple[Metric, ...]:
    return ExtractionStrength(), ExactMemorization()


def _knowledge(data: str | Path, about: Role) -> Task:
    shots = read_muse(data, "knowmem", f"{about}_qa_icl")
    questions = tuple(ask(question, shots) for question in read_muse(data, "knowmem", f"{about}_qa"))
    return Task(f"knowmem_{about}", questions, (Rouge(),), about, max_new_tokens=32, verbatim=True, stop=STOPS)


def _part(data: str | Path, part: Part) -> Task:
    kind, _, number = part.partition("_")
    return Task(part, read_muse(data, kind, f"forget_{number}"), (Perplexity(), *_memory()), "forget")
