"""Min-K%++ attack: Min-K% with each log-probability standardized over the vocabulary."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from expunge.evaluation.metrics.base import Need, Row, Unscored, unscorable
from expunge.evaluation.metrics.membership import AUC_NOT, MembershipMetric
from expunge.evaluation.metrics.mia_min_k import mean_of_lowest

SMALLEST_VARIANCE = 1e-6
"""Lower bound of the variance, which is 0 if the model is certain; the value of open-unlearning."""


class MiaMinKPlusPlus(MembershipMetric):
    """Min-K% of standardized log-probabilities: training text is a local maximum of the model's likelihood.

    The end token counts where the response has one; open-unlearning leaves out the last token of every response: `compat`.
    """

    formula: ClassVar[str] = (
        "AUC over forget and holdout of the mean of the lowest max(1, floor(k n)) of (log p(x_t | x<t) - m_t) / s_t, with "
        "m_t = E_p[log p] and s_t^2 = max(Var_p[log p], 1e-6) over the vocabulary"
    )
    source: ClassVar[str] = (
        "Zhang et al. 2025 (arXiv 2404.02936); k = 40 % as in open-unlearning. The end token counts; open-unlearning leaves out "
        "the last token: `compat`."
    )
    not_this: ClassVar[str] = AUC_NOT + "Sharpening or flattening the distribution (temperature, label smoothing) moves it."

    name: Literal["mia_min_k_plus_plus"] = "mia_min_k_plus_plus"
    k: float = Field(0.4, gt=0, le=1)
    """Share of tokens."""
    compat: bool = False
    """Without the last token, as in the released code of open-unlearning."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"answer", "distribution"})

    def score(self, row: Row) -> float | Unscored:
        answer = row.answer.without_last() if self.compat else row.answer
        if reason := unscorable(answer):
            return reason
        spread = answer.distribution
        if spread is None:
            raise ValueError("mia_min_k_plus_plus needs the distribution of each token")
        deviation = np.sqrt(np.maximum(spread.variance.astype(np.float64), SMALLEST_VARIANCE))
        return mean_of_lowest((answer.logp - spread.mean) / deviation, self.k)
