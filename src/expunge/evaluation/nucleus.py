"""Sampling that is a value and not an event: the draw of a prompt is the same in every batch, on any number of processes.

Shape suffixes: B rows, V vocabulary, T tokens.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from transformers import LogitsProcessor

Ids = tuple[int, ...]


class Nucleus(BaseModel):
    """Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751): from the fewest tokens that hold `top_p` of the probability."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    top_p: float = Field(0.9, gt=0, le=1)
    """Share of the probability that is drawn from."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it."""
    seed: int = 0
    """Another seed, other draws."""

    def uniforms(self, prompt: Ids, draw: int, count: int) -> NDArray[np.float64]:
        """One number in [0, 1) for each token of a continuation: a function of seed, prompt, draw, and nothing else."""
        digest = hashlib.sha256(np.array(prompt, dtype=np.int64).tobytes()).digest()
        return np.random.default_rng([self.seed, draw, int.from_bytes(digest[:16])]).random(count)


USUAL = Nucleus()
"""The setting of RealToxicityPrompts (arXiv 2009.11462)."""


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
