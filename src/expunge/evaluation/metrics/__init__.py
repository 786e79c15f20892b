"""The closed list of metrics that give one value per example, in reading order."""

from typing import Annotated

from pydantic import Field

from expunge.evaluation.metrics.accuracy import Accuracy
from expunge.evaluation.metrics.base import Metric, Row, TokenStats, Unscored
from expunge.evaluation.metrics.exact_memorization import ExactMemorization
from expunge.evaluation.metrics.extraction_strength import ExtractionStrength
from expunge.evaluation.metrics.harmful_rate import HarmfulRate
from expunge.evaluation.metrics.probability import Probability
from expunge.evaluation.metrics.rouge_l_recall import RougeLRecall
from expunge.evaluation.metrics.truth_ratio import TruthRatio

AnyMetric = Annotated[
    Probability | RougeLRecall | TruthRatio | ExtractionStrength | ExactMemorization | Accuracy | HarmfulRate,
    Field(discriminator="name"),
]
METRICS: dict[str, type[Metric]] = {
    cls.metric_name(): cls
    for cls in (Probability, RougeLRecall, TruthRatio, ExtractionStrength, ExactMemorization, Accuracy, HarmfulRate)
}

__all__ = [
    "METRICS",
    "Accuracy",
    "AnyMetric",
    "ExactMemorization",
    "ExtractionStrength",
    "HarmfulRate",
    "Metric",
    "Probability",
    "RougeLRecall",
    "Row",
    "TokenStats",
    "TruthRatio",
    "Unscored",
]
