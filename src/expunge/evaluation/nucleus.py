"""Sampling that is a value and not an event: the draw of a prompt is the same in every batch, on any number of processes."""

import hashlib

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

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
