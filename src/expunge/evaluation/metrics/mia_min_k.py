"""Min-K% attack: training texts have fewer improbable tokens."""

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from expunge.evaluation.metrics.base import Row, Unscored, unscorable
from expunge.evaluation.metrics.membership import AUC_NOT, MembershipMetric


def mean_of_lowest(values: NDArray[np.floating], share: float) -> float:
    """Computes the mean of the lowest max(1, floor(share n)) of n values."""
    count = max(1, int(share * len(values)))
    return float(np.partition(values, count - 1)[:count].mean(dtype=np.float64))


class MiaMinK(MembershipMetric):
    """Mean log-probability of the k % least probable tokens of the response.

    The end token counts where the response has one, as it does in the loss that training minimized and in `mia_loss`.
    open-unlearning leaves out the last token of every response here, and counts it in its loss attack: `compat`.
    """

    formula: ClassVar[str] = "AUC over forget and holdout of the mean of the lowest max(1, floor(k n)) of log p(x_t | x<t)"
    source: ClassVar[str] = (
        "Shi et al. 2024 (arXiv 2310.16789); k = 40 % as in MUSE and open-unlearning. The end token counts; "
        "open-unlearning leaves out the last token: `compat`."
    )
    not_this: ClassVar[str] = AUC_NOT + "With few tokens k % is one token: rare names decide then, seen or not."

    name: Literal["mia_min_k"] = "mia_min_k"
    k: float = Field(0.4, gt=0, le=1)
    """Share of tokens."""
    compat: bool = False
    """Without the last token, as in the released code of open-unlearning."""

    def score(self, row: Row) -> float | Unscored:
        answer = row.answer.without_last() if self.compat else row.answer
        return unscorable(answer) or mean_of_lowest(answer.logp, self.k)
