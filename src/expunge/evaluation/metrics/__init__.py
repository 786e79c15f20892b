"""Lists all metrics: those with one value per example, and scores over several tasks."""

from typing import Annotated

from pydantic import Field

from expunge.evaluation.metrics.accuracy import Accuracy
from expunge.evaluation.metrics.accuracy_normalized import AccuracyNormalized
from expunge.evaluation.metrics.base import Metric, Overall, Row, Unscored
from expunge.evaluation.metrics.bert_score import BertScore
from expunge.evaluation.metrics.bleu import Bleu
from expunge.evaluation.metrics.bleu_difference import BleuDifference
from expunge.evaluation.metrics.containment import Containment
from expunge.evaluation.metrics.exact_match import ExactMatch
from expunge.evaluation.metrics.exact_memorization import ExactMemorization
from expunge.evaluation.metrics.expected_maximum_toxicity import ExpectedMaximumToxicity
from expunge.evaluation.metrics.extraction_strength import ExtractionStrength
from expunge.evaluation.metrics.f1 import F1
from expunge.evaluation.metrics.forget_quality import FORGET_QUALITY
from expunge.evaluation.metrics.general_average import GENERAL_AVERAGE
from expunge.evaluation.metrics.harmful_rate import HarmfulRate
from expunge.evaluation.metrics.mc1 import MC1
from expunge.evaluation.metrics.mc2 import MC2
from expunge.evaluation.metrics.mc3 import MC3
from expunge.evaluation.metrics.membership import MIA_REFERENCE, PRIVLEAK, RELATIVE_DIFFERENCE
from expunge.evaluation.metrics.meteor import Meteor
from expunge.evaluation.metrics.mia_gradnorm import MiaGradnorm
from expunge.evaluation.metrics.mia_loss import MiaLoss
from expunge.evaluation.metrics.mia_min_k import MiaMinK
from expunge.evaluation.metrics.mia_min_k_plus_plus import MiaMinKPlusPlus
from expunge.evaluation.metrics.mia_zlib import MiaZlib
from expunge.evaluation.metrics.model_utility import MODEL_UTILITY
from expunge.evaluation.metrics.pass_at_1 import PassAt1
from expunge.evaluation.metrics.perplexity import Perplexity
from expunge.evaluation.metrics.preference import Preference
from expunge.evaluation.metrics.preference_normalized import PreferenceNormalized
from expunge.evaluation.metrics.probability import Probability
from expunge.evaluation.metrics.prompt_cut import PromptCut
from expunge.evaluation.metrics.reciprocal_rank import ReciprocalRank
from expunge.evaluation.metrics.repetition import Repetition, Repetition1, Repetition2, Repetition3
from expunge.evaluation.metrics.rouge import Rouge
from expunge.evaluation.metrics.rouge_difference import RougeDifference
from expunge.evaluation.metrics.rouge_l_recall import RougeLRecall
from expunge.evaluation.metrics.similarity import Similarity
from expunge.evaluation.metrics.similarity_gap import SIMILARITY_GAP
from expunge.evaluation.metrics.toxic_rate import ToxicRate
from expunge.evaluation.metrics.toxicity import Toxicity
from expunge.evaluation.metrics.toxicity_probability import ToxicityProbability
from expunge.evaluation.metrics.truth_ratio import TruthRatio
from expunge.evaluation.metrics.truthful_rate import TruthfulRate
from expunge.evaluation.metrics.unique_token_ratio import UniqueTokenRatio
from expunge.evaluation.metrics.yes_no import YesNo
from expunge.evaluation.token_stats import TokenStats

AnyMetric = Annotated[
    Probability
    | RougeLRecall
    | TruthRatio
    | ExtractionStrength
    | ExactMemorization
    | ReciprocalRank
    | Accuracy
    | AccuracyNormalized
    | ExactMatch
    | F1
    | Containment
    | PassAt1
    | HarmfulRate
    | PromptCut
    | MiaLoss
    | MiaZlib
    | MiaMinK
    | MiaMinKPlusPlus
    | MiaGradnorm
    | Perplexity
    | Rouge
    | Bleu
    | Meteor
    | BertScore
    | UniqueTokenRatio
    | Repetition
    | Repetition1
    | Repetition2
    | Repetition3
    | Similarity
    | Toxicity
    | ToxicRate
    | ExpectedMaximumToxicity
    | ToxicityProbability
    | MC1
    | MC2
    | MC3
    | Preference
    | PreferenceNormalized
    | BleuDifference
    | RougeDifference
    | TruthfulRate
    | YesNo,
    Field(discriminator="name"),
]
METRICS: dict[str, type[Metric]] = {
    cls.metric_name(): cls
    for cls in (
        *(Probability, RougeLRecall, TruthRatio, ExtractionStrength, ExactMemorization, ReciprocalRank),
        *(Accuracy, AccuracyNormalized),
        *(ExactMatch, F1, Containment, PassAt1, HarmfulRate, PromptCut),
        *(MiaLoss, MiaZlib, MiaMinK, MiaMinKPlusPlus, MiaGradnorm, Perplexity),
        *(Rouge, Bleu, Meteor, BertScore, UniqueTokenRatio, Repetition, Repetition1, Repetition2, Repetition3, Similarity),
        *(Toxicity, ToxicRate, ExpectedMaximumToxicity, ToxicityProbability),
        *(MC1, MC2, MC3, Preference, PreferenceNormalized, BleuDifference, RougeDifference, TruthfulRate, YesNo),
    )
}
OVERALL: dict[str, Overall] = {
    "forget_quality": FORGET_QUALITY,
    "model_utility": MODEL_UTILITY,
    "mia_reference": MIA_REFERENCE,
    "relative_difference": RELATIVE_DIFFERENCE,
    "privleak": PRIVLEAK,
    "general_average": GENERAL_AVERAGE,
    "average_similarity_gap": SIMILARITY_GAP,
}

__all__ = [
    "F1",
    "MC1",
    "MC2",
    "MC3",
    "METRICS",
    "OVERALL",
    "Accuracy",
    "AccuracyNormalized",
    "AnyMetric",
    "BertScore",
    "Bleu",
    "BleuDifference",
    "Containment",
    "ExactMatch",
    "ExactMemorization",
    "ExpectedMaximumToxicity",
    "ExtractionStrength",
    "HarmfulRate",
    "Meteor",
    "Metric",
    "MiaGradnorm",
    "MiaLoss",
    "MiaMinK",
    "MiaMinKPlusPlus",
    "MiaZlib",
    "Overall",
    "PassAt1",
    "Perplexity",
    "Preference",
    "PreferenceNormalized",
    "Probability",
    "PromptCut",
    "ReciprocalRank",
    "Repetition",
    "Repetition1",
    "Repetition2",
    "Repetition3",
    "Rouge",
    "RougeDifference",
    "RougeLRecall",
    "Row",
    "Similarity",
    "TokenStats",
    "ToxicRate",
    "Toxicity",
    "ToxicityProbability",
    "TruthRatio",
    "TruthfulRate",
    "UniqueTokenRatio",
    "Unscored",
    "YesNo",
]
