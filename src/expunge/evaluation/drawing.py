"""Sampling inside greedy decoding: a logits processor that leaves the one token that was drawn.

Shape suffixes: B rows, V vocabulary, T tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor

from expunge.evaluation.nucleus import Ids, Nucleus


class Drawn(LogitsProcessor):
    """Leaves one token, so that greedy decoding writes what was drawn.

    The tokens are put in the order of their probability; u of the nucleus' mass is walked off, and the token that is reached is
    taken: inverse transform sampling, with each row's own u.
    """

    def __init__(self, nucleus: Nucleus, uniforms_BT: NDArray[np.float64], width: int) -> None:
        """width: tokens of the padded prompts."""
        self.nucleus, self.width = nucleus, width
        self.uniforms_BT = torch.from_numpy(uniforms_BT)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        step = input_ids.shape[1] - self.width
        sorted_BV, order_BV = (scores.double() / self.nucleus.temperature).sort(dim=-1, descending=True, stable=True)
        p_BV = sorted_BV.softmax(dim=-1)
        kept_BV = p_BV.cumsum(dim=-1) - p_BV < self.nucleus.top_p
        mass_BV = (p_BV * kept_BV).cumsum(dim=-1)
        walked_B1 = self.uniforms_BT[:, step : step + 1].to(mass_BV.device) * mass_BV[:, -1:]
        place_B1 = (mass_BV <= walked_B1).sum(dim=-1, keepdim=True).minimum(kept_BV.sum(dim=-1, keepdim=True) - 1)
        left_BV = torch.full_like(scores, -torch.inf).scatter_(1, order_BV.gather(1, place_B1), 0.0)
        return left_BV  # type: ignore[return-value]


def drawn(nucleus: Nucleus, rows: Sequence[tuple[Ids, int, int]], tokens: int, width: int) -> Drawn:
    """For a batch of (prompt, draw, tokens already written) that gets at most so many tokens more each."""
    return Drawn(nucleus, np.stack([nucleus.uniforms(prompt, draw, n + tokens)[n:] for prompt, draw, n in rows]), width)
