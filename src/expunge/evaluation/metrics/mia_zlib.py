"""Zlib attack: training texts have a low loss for how little they compress."""

import zlib
from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Row, Unscored, unscorable
from expunge.evaluation.metrics.membership import AUC_NOT, MembershipMetric


def zlib_bytes(text: str) -> int:
    """Returns the length of the text's UTF-8 bytes after zlib at its default level, a measure of its information without a
    model."""
    return len(zlib.compress(text.encode()))


class MiaZlib(MembershipMetric):
    """Mean log-probability per token over the zlib length of the response's text: repetitive texts are easy without memory."""

    formula: ClassVar[str] = "AUC over forget and holdout of ((1/n) sum over t of log p(x_t | x<t)) / len(zlib(x))"
    source: ClassVar[str] = "Carlini et al. 2021 (arXiv 2012.07805); mean loss over bytes as in MUSE and open-unlearning"
    not_this: ClassVar[str] = AUC_NOT + "zlib adds 8 bytes to any text: on very short ones it measures length."

    name: Literal["mia_zlib"] = "mia_zlib"

    def score(self, row: Row) -> float | Unscored:
        return unscorable(row.answer) or row.answer.mean_logp() / zlib_bytes(row.example.response)
