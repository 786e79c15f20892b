"""Min-K%: what the model has seen has few surprising words."""

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from expunge.evaluation.metrics.base import Row, Unscored, unscorable
from expunge.evaluation.metrics.membership import AUC_NOT, MembershipMetric


def mean_of_lowest(values: NDArray[np.floating], share: float) -> float:
    """Mean of the lowest max(1, floor(share n)) of n values."""
    count = max(1, int(share * len(values)))
    return float(np.partition(values, count - 1)[:count].mean(dtype=np.float64))


class MiaMinK(MembershipMetric):
    """Mean log-probability of the k % least probable tokens of the response."""

    formula: ClassVar[str] = "AUC over forget and holdout of the mean of the lowest max(1, floor(k n)) of log p(x_t | x<t)"
    source: ClassVar[str] = "Shi et al. 2024 (arXiv 2310.16789); k = 40 % as in MUSE and open-unlearning"
    not_this: ClassVar[str] = AUC_NOT + "With few tokens k % is one token: rare names decide then, seen or not."

    name: Literal["mia_min_k"] = "mia_min_k"
    k: float = Field(0.4, gt=0, le=1)
    """Share of tokens."""

    def score(self, row: Row) -> float | Unscored:
        return unscorable(row.answer) or mean_of_lowest(row.answer.logp, self.k)
