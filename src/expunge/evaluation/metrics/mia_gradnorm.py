"""Gradient-norm attack: training texts have smaller loss gradients."""

import math
from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Need, Row, Unscored, unscorable
from expunge.evaluation.metrics.membership import AUC_NOT, MembershipMetric


class MiaGradnorm(MembershipMetric):
    """Minus the size of the gradient of the response's mean loss. A backward pass for each text, one at a time.

    The loss is the one that training minimized, the end token included; open-unlearning leaves the last token of every response
    out of it: `compat`.
    """

    formula: ClassVar[str] = "AUC over forget and holdout of -(mean over parameter tensors W of ||d loss / d W||_2)"
    source: ClassVar[str] = (
        "Wang et al. 2024 (arXiv 2402.17012) in the form of MIMIR (arXiv 2402.07841) and open-unlearning. The end token counts; "
        "open-unlearning leaves out the last token: `compat`."
    )
    not_this: ClassVar[str] = AUC_NOT + "Not comparable between models: the norm depends on how weights are cut into tensors."

    name: Literal["mia_gradnorm"] = "mia_gradnorm"
    compat: bool = False
    """Without the last token, as in the released code of open-unlearning."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"answer", "gradient_without_last" if self.compat else "gradient"})

    def score(self, row: Row) -> float | Unscored:
        if reason := unscorable(row.answer.without_last() if self.compat else row.answer):
            return reason
        norm = row.gradient_norm_without_last if self.compat else row.gradient_norm
        if norm is None or not math.isfinite(norm):
            return Unscored("the gradient is not finite")
        return -norm
