"""Samples tokens by inverse transform sampling from given uniform numbers, so that a draw is reproducible.

Shape suffixes: B rows, V vocabulary, T tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor

from expunge.evaluation.nucleus import Ids, Nucleus


def draw(nucleus: Nucleus, logits_BV: Tensor, u_B1: Tensor) -> Tensor:
    """Returns [B] tokens: those at which the cumulative probability, in descending order, reaches the share u of the nucleus.

    u_B1  float64 in [0, 1), one for each row
    """
    sorted_BV, order_BV = (logits_BV.double() / nucleus.temperature).sort(dim=-1, descending=True, stable=True)
    p_BV = sorted_BV.softmax(dim=-1)
    kept_BV = p_BV.cumsum(dim=-1) - p_BV < nucleus.top_p
    mass_BV = (p_BV * kept_BV).cumsum(dim=-1)
    walked_B1 = u_B1.to(mass_BV.device) * mass_BV[:, -1:]
    place_B1 = (mass_BV <= walked_B1).sum(dim=-1, keepdim=True).minimum(kept_BV.sum(dim=-1, keepdim=True) - 1)
    return order_BV.gather(1, place_B1.clamp(min=0))[:, 0]


class InverseTransformSampler(LogitsProcessor):
    """Leaves one token finite, so that greedy decoding by transformers' `generate` writes the drawn token."""

    def __init__(self, nucleus: Nucleus, uniforms_BT: NDArray[np.float64], width: int) -> None:
        """width: tokens of the padded prompts."""
        self.nucleus, self.width = nucleus, width
        self.uniforms_BT = torch.from_numpy(uniforms_BT)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        step = input_ids.shape[1] - self.width
        token_B = draw(self.nucleus, scores, self.uniforms_BT[:, step : step + 1])
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B[:, None], 0.0)  # type: ignore[return-value]


def drawn(nucleus: Nucleus, rows: Sequence[tuple[Ids, int]], tokens: int, width: int) -> InverseTransformSampler:
    """Makes the sampler of a batch of (prompt, draw), for at most this many tokens each."""
    return InverseTransformSampler(nucleus, np.stack([nucleus.uniforms(prompt, draw, tokens) for prompt, draw in rows]), width)
