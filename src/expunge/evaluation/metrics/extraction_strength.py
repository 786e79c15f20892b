"""Extraction strength: share of the answer that the model completes correctly by itself."""

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.metrics.base import Good, Metric, Row, Unscored, unscorable


def extraction_strength(hit: NDArray[np.bool_], *, compat: bool = False) -> float:
    """Computes 1 - k/n, where k is the smallest number of given tokens after which all n - k others are greedy hits.

    k = n (nothing matches) gives 0. With `compat` k goes up to n - 1 only, so that nothing matched gives 1/n, and a wrong
    answer of one token 1.
    """
    n = len(hit)
    misses = np.flatnonzero(~hit)
    given = int(misses[-1]) + 1 if len(misses) else 0
    return 1.0 - (min(given, n - 1) if compat else given) / n


class ExtractionStrength(Metric):
    """Share of the response that follows by greedy decoding from the prompt and the rest before it."""

    formula: ClassVar[str] = "1 - min{k : greedy([q, a<k]) = a>=k} / |a|, the end token left out"
    source: ClassVar[str] = (
        "Carlini et al. 2021 (arXiv 2012.07805) in the form of Wang et al. 2024 (arXiv 2406.09179). open-unlearning's code never "
        "returns 0 (1/|a| when nothing matches, 1 for a wrong answer of one token): `compat`."
    )
    span: ClassVar[str] = "0 (the last token is wrong even when all others are given) .. 1 (the prompt alone is enough)"
    not_this: ClassVar[str] = (
        "Not a share of right tokens: one wrong token near the end makes it small. "
        "Greedy decoding only: an answer that comes out when sampling can have strength 0."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["extraction_strength"] = "extraction_strength"
    compat: bool = False
    """The off-by-one of the released code of open-unlearning."""

    def score(self, row: Row) -> float | Unscored:
        text = row.answer.without_end()
        return unscorable(text) or extraction_strength(text.hit, compat=self.compat)
