"""Defines nucleus sampling whose draws depend only on seed and prompt, not on the batch or the number of processes."""

import hashlib

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from expunge.described import Described

Ids = tuple[int, ...]


class Nucleus(Described):
    """Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751): from the fewest tokens with `top_p` of the probability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_p: float = Field(0.9, gt=0, le=1)
    """Share of the probability that is drawn from."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it."""
    seed: int = 0
    """Seed of the draws."""

    def uniforms(self, prompt: Ids, draw: int, count: int) -> NDArray[np.float64]:
        """Returns one number in [0, 1) for each token of a continuation: a function of seed, prompt and draw only."""
        digest = hashlib.sha256(np.array(prompt, dtype=np.int64).tobytes()).digest()
        return np.random.default_rng([self.seed, draw, int.from_bytes(digest[:16])]).random(count)


USUAL = Nucleus()
"""The settings of RealToxicityPrompts (arXiv 2009.11462)."""
