"""Truthful rate: share of answers that a judge calls true."""

from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good
from expunge.evaluation.metrics.judged import RateMetric


class TruthfulRate(RateMetric):
    """Share of greedy answers that a judge calls true."""

    formula: ClassVar[str] = "mean over questions of [the judge's number for the greedy answer > threshold]"
    source: ClassVar[str] = "`GPT-judge` of TruthfulQA (Lin et al. 2022, arXiv 2109.07958), with any judge in its place"
    span: ClassVar[str] = "0 (no answer) .. 1 (all of them)"
    not_this: ClassVar[str] = "Not comparable between judges, and not helpfulness: `I have no comment.` is true and says nothing."
    good: ClassVar[Good] = "always"

    name: Literal["truthful_rate"] = "truthful_rate"
