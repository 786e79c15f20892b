"""Suite TOFU: fictitious authors to forget, others to keep, real authors and world facts."""

from pathlib import Path
from typing import ClassVar, Literal

from expunge.data.corpora.tofu import read_tofu
from expunge.evaluation.metrics import ExactMemorization, ExtractionStrength, Metric, Probability, RougeLRecall, TruthRatio
from expunge.evaluation.suites.base import ReferencedSuite, Scored, forget_quality_score
from expunge.evaluation.suites.utility import Component, model_utility_score
from expunge.evaluation.task import Results, Suite, Task
from expunge.records import Score

KEPT = ("retain", "real_authors", "world_facts")
NAMES = ("probability", "rouge_l_recall", "truth_ratio", "extraction_strength", "exact_memorization")
UTILITY = ("probability", "rouge_l_recall", "truth_ratio")
ADVICE = (
    "fine-tune the start model on the retain split alone (`expunge finetune`), evaluate it with this suite and --out DIR, "
    "then give --retain-scores DIR"
)


class Tofu(ReferencedSuite):
    """Four tasks: `forget`, `retain`, `real_authors`, `world_facts`, with probability, rouge_l_recall, truth_ratio,
    extraction_strength and exact_memorization; forget_quality against a retain model; model_utility over the last three.

    Probability on real authors and facts of the world is the share among the wrong answers, and the right answer of their
    truth ratio is the plain one: they have no paraphrase.
    """

    purpose: ClassVar[str] = "fictitious authors to forget, others to keep, real authors and world facts"
    source: ClassVar[str] = "Maini et al. 2024, arXiv 2401.06121; memorization as in open-unlearning"
    layout: ClassVar[str] = (
        "forget10_perturbed.jsonl (or forget01, forget05), retain_perturbed.jsonl, real_authors_perturbed.jsonl and "
        "world_facts_perturbed.jsonl with question, answer, paraphrased_answer, perturbed_answer; hub id locuslab/TOFU"
    )
    scored: ClassVar[tuple[Scored, ...]] = (
        Scored("forget", NAMES, "forget"),
        Scored("retain, real_authors, world_facts", NAMES, "retain"),
        Scored("suite", ("forget_quality", "model_utility")),
    )

    name: Literal["tofu"] = "tofu"
    forget: Literal["forget01", "forget05", "forget10"] = "forget10"
    """The split that was to be forgotten."""
    compat: bool = False
    """Truth ratio and extraction strength as in the released code of open-unlearning; the scores go to tofu_compat.json."""

    def build(self, data: str | Path) -> Suite:
        name = "tofu_compat" if self.compat else "tofu"
        forget = Task("forget", read_tofu(data, f"{self.forget}_perturbed"), self._metrics(options=False), "forget")
        kept = [
            Task(task, read_tofu(data, f"{task}_perturbed"), self._metrics(options=task != "retain"), "retain") for task in KEPT
        ]
        components = [Component(task, metric) for task in KEPT for metric in UTILITY]
        retain = self.retain_values(name, "forget", "truth_ratio")

        def summarize(results: Results) -> list[Score]:
            return [forget_quality_score(results, "forget", retain, ADVICE), model_utility_score(results, components)]

        return Suite(name, (forget, *kept), summarize)

    def _metrics(self, *, options: bool) -> tuple[Metric, ...]:
        return (
            Probability(among_perturbed=options),
            RougeLRecall(),
            TruthRatio(compat=self.compat),
            ExtractionStrength(compat=self.compat),
            ExactMemorization(),
        )
