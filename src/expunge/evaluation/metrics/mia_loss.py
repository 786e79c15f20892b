"""Loss attack: training texts have a lower loss."""

from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Row, Unscored, unscorable
from expunge.evaluation.metrics.membership import AUC_NOT, MembershipMetric


class MiaLoss(MembershipMetric):
    """Mean log-probability per token of the response, its end token included: minus the loss that training minimized."""

    formula: ClassVar[str] = "AUC over forget and holdout of (1/n) sum over t of log p(x_t | x<t)"
    source: ClassVar[str] = "Yeom et al. 2018 (arXiv 1709.01604); open-unlearning's mia_loss"
    not_this: ClassVar[str] = (
        AUC_NOT + "Texts that are easy for any model look like members here; mia_zlib and mia_reference correct it."
    )

    name: Literal["mia_loss"] = "mia_loss"

    def score(self, row: Row) -> float | Unscored:
        return unscorable(row.answer) or row.answer.mean_logp()
