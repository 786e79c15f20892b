"""Draws counter-based random numbers: a draw is a hash of its key, and so the same in any batch, call and device.

Keys are int64 tensors that are mixed field by field (seed, then prompt, then position ...). Torch's global generator is neither
read nor changed.
"""

from functools import cache

import torch
from torch import Tensor

MULTIPLIERS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd 64-bit constants of splitmix64: the golden ratio and the two of its finalizer."""


def mix(bits: Tensor) -> Tensor:
    """Applies splitmix64's finalizer to int64: every input bit affects every output bit. Shifts are made logical by masks."""
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * MULTIPLIERS[1]
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * MULTIPLIERS[2]
    return bits ^ ((bits >> 31) & 0x1FFFFFFFF)


def uniform(bits: Tensor) -> Tensor:
    """Converts mixed int64 keys to float32 in [0, 1), with 24 bits."""
    bits = bits * MULTIPLIERS[1]
    bits = (bits ^ (bits >> 32)) * MULTIPLIERS[2]
    return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24


@cache
def powers(count: int, device: torch.device) -> Tensor:
    """Computes A^0 ... A^(count - 1) mod 2^64, as int64, with A the first multiplier."""
    with torch.inference_mode(False):  # a cached tensor is used again by passes that record gradients
        values, power = [], 1
        for _ in range(count):
            values.append(power - 2**64 if power >= 2**63 else power)
            power = power * MULTIPLIERS[0] % 2**64
        return torch.tensor(values, device=device)
