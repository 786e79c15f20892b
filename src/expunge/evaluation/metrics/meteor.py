"""METEOR: overlap of words, stems and synonyms, with a penalty for their order."""

from typing import ClassVar, Literal

from expunge.evaluation.comparing import MeteorScore
from expunge.evaluation.judges import Judge
from expunge.evaluation.metrics.base import Good
from expunge.evaluation.metrics.judged import JudgedMetric


class Meteor(JudgedMetric):
    """METEOR of the greedy answer against the response, by nltk, on words separated by spaces."""

    formula: ClassVar[str] = "F (1 - penalty), F = P R / (0.9 P + 0.1 R) of aligned words, penalty = 0.5 (chunks / aligned)^3"
    source: ClassVar[str] = "Banerjee and Lavie 2005, through nltk with WordNet; used by ECO (arXiv 2406.07933)"
    span: ClassVar[str] = "0 (no common word) .. nearly 1 (the same text)"
    not_this: ClassVar[str] = "Not equality of facts: another name in the same sentence costs little. English only."
    good: ClassVar[Good] = "knowledge"

    name: Literal["meteor"] = "meteor"

    @property
    def asked(self) -> Judge:
        return MeteorScore()
