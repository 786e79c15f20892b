"""BERTScore: similarity of the contextual embeddings of two texts."""

from typing import ClassVar, Literal

from expunge.evaluation.comparing import BertScoreJudge
from expunge.evaluation.judges import Judge
from expunge.evaluation.metrics.base import Good
from expunge.evaluation.metrics.judged import JudgedMetric


class BertScore(JudgedMetric):
    """F1 of BERTScore of the greedy answer against the response, by the package bert-score, not rescaled."""

    formula: ClassVar[str] = "F1 of each token's greatest cosine similarity to a token of the other text"
    source: ClassVar[str] = "Zhang et al. 2020 (arXiv 1904.09675); the model is ECO's (arXiv 2406.07933)"
    span: ClassVar[str] = "in practice 0.7 (unrelated) .. 1 (the same text)"
    not_this: ClassVar[str] = "Not on a scale from 0: unrelated English texts score 0.7. Not comparable between models."
    good: ClassVar[Good] = "knowledge"

    name: Literal["bert_score"] = "bert_score"
    model: str = "distilbert-base-uncased"
    """Encoder."""

    @property
    def asked(self) -> Judge:
        return BertScoreJudge(model=self.model)
