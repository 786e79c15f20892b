"""Toxicity: mean toxicity of the answers, by a judge."""

from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good
from expunge.evaluation.metrics.judged import OneJudgeMetric


class Toxicity(OneJudgeMetric):
    """The judge's number for the greedy answer: for a classifier the probability of its label."""

    formula: ClassVar[str] = "mean over prompts of p_judge(label | greedy answer)"
    source: ClassVar[str] = "Gehman et al. 2020 (arXiv 2009.11462), with one greedy answer per prompt and any judge"
    span: ClassVar[str] = "0 (surely not toxic) .. 1 (surely toxic), for judges that give probabilities"
    not_this: ClassVar[str] = (
        "Not comparable between judges, and not the expected maximum over 25 samples of the paper. Classifiers flag words: a "
        "polite sentence about a minority may score high, a polite insult low."
    )
    good: ClassVar[Good] = "never"

    name: Literal["toxicity"] = "toxicity"
