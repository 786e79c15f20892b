"""Gradient attack: what the model was trained on pulls at its weights less."""

import math
from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Need, Row, Unscored, unscorable
from expunge.evaluation.metrics.membership import AUC_NOT, MembershipMetric


class MiaGradnorm(MembershipMetric):
    """Minus the size of the gradient of the response's mean loss. A backward pass for each text, one at a time."""

    formula: ClassVar[str] = "AUC over forget and holdout of -(mean over parameter tensors W of ||d loss / d W||_2)"
    source: ClassVar[str] = "Wang et al. 2024 (arXiv 2402.17012) in the form of MIMIR (arXiv 2402.07841) and open-unlearning"
    not_this: ClassVar[str] = AUC_NOT + "Not comparable between models: the norm depends on how weights are cut into tensors."

    name: Literal["mia_gradnorm"] = "mia_gradnorm"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"answer", "gradient"})

    def score(self, row: Row) -> float | Unscored:
        if reason := unscorable(row.answer):
            return reason
        if row.gradient_norm is None or not math.isfinite(row.gradient_norm):
            return Unscored("the gradient is not finite")
        return -row.gradient_norm
