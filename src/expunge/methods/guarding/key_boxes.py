"""Fits boxes around the key vectors of a skill, and calibrates their size.

A box is a centre and a unit of length per dimension; the distance of a vector v from its centre is the largest over its
dimensions,

    z(v) = max_d |v_d - m_d| / s_d          inside, if z(v) <= r.

Published: m is the mean and s the standard deviation of the fitted vectors, and k = max z over them is the least radius that
holds them all. By Samuelson's inequality k <= (n - 1) / sqrt(n) for any n vectors, so that a larger radius includes vectors
that no sample of this size can contain. The alternative is the tightest box: m is the middle and s half of the range of the
fitted vectors, so k = 1. Keys are skewed and heavy-tailed, differently in each dimension, and a standard deviation does not
tell how far such a dimension reaches: one radius in standard deviations is as large as the worst dimension needs it.

Shape suffixes: F dimensions of a key, N vectors, L layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from expunge.models.activations import Moments


Sides = Literal["deviation", "range"]
"""Unit of a side of the box: the standard deviation of the fitted vectors (published), or half of their range."""

FLOOR = 1e-6
"""Smallest unit, for dimensions in which all fitted vectors are equal."""

SLACK = 1e-4
"""Relative distance of a calibrated radius from any measured vector: on a GPU or in another batch distances differ by about
1e-5."""

MARGIN = 1.5
"""How much larger a calibrated radius may be than the one that holds 99 % of the held-out forget vectors."""


@dataclass(frozen=True)
class KeyBox:
    """Centre and units of a box, in float32 (in which all comparisons are made), and k."""

    centre_F: Tensor
    """Mean, or middle of the range."""
    unit_F: Tensor
    """Sample standard deviation (n - 1), or half of the range."""
    k: float
    n: int

    @classmethod
    def of_moments(cls, moments: Moments, layer: int, sides: Sides = "deviation") -> KeyBox:
        """Builds a box from statistics alone: the farthest value of a dimension is its minimum or its maximum."""
        parts = (t[layer] for t in (moments.mean_LF, moments.m2_LF, moments.min_LF, moments.max_LF))
        return cls._of(sides, int(moments.n_L[layer]), *parts)

    @classmethod
    def of_vectors(cls, vectors_NF: Tensor, sides: Sides = "deviation") -> KeyBox:
        """Builds a box from the vectors themselves, some columns at a time, to stay in the CPU's cache."""
        import torch

        ones_N, parts = vectors_NF.new_ones(len(vectors_NF), dtype=torch.float64), []
        for columns in vectors_NF.split(512, dim=1):
            wide = columns.double()
            mean, low, high = ones_N @ wide / len(ones_N), wide.amin(dim=0), wide.amax(dim=0)
            parts.append((mean, ones_N @ wide.sub_(mean).square_(), low, high))
        return cls._of(sides, len(ones_N), *(torch.cat(column) for column in zip(*parts, strict=True)))

    @classmethod
    def _of(cls, sides: Sides, n: int, mean_F: Tensor, m2_F: Tensor, min_F: Tensor, max_F: Tensor) -> KeyBox:
        import torch

        if sides == "range":
            return cls(((min_F + max_F) / 2).float(), ((max_F - min_F) / 2).clamp(min=FLOOR).float(), 1.0, n)
        unit_F = (m2_F / max(1, n - 1)).sqrt().clamp(min=FLOOR)
        farthest_F = torch.maximum(max_F - mean_F, mean_F - min_F)
        return cls(mean_F.float(), unit_F.float(), float((farthest_F / unit_F).max()), n)

    def to(self, device: torch.device) -> KeyBox:
        import torch

        if self.centre_F.device == device:
            return self
        with torch.inference_mode(False):  # the copy stays, and a later pass may record gradients
            return KeyBox(self.centre_F.to(device), self.unit_F.to(device), self.k, self.n)

    def is_a_point(self) -> bool:
        """Returns whether all fitted vectors are equal (to FLOOR), so that distances have no unit."""
        return bool((self.unit_F <= FLOOR).all())

    def distance(self, vectors_NF: Tensor) -> Tensor:
        """Computes z of each vector, float32 [N], which decides for every radius."""
        box = self.to(vectors_NF.device)
        return ((vectors_NF.float() - box.centre_F).abs_() / box.unit_F).amax(dim=-1)


def samuelson(n: int) -> float:
    """Returns the largest distance, in standard deviations, that one of n values can have from their mean."""
    return (n - 1) / math.sqrt(n)


def calibrate(forget_N: Tensor, retain_N: Tensor, false_abstain: float, least_detected: float = 0.0) -> float:
    """Returns the radius for held-out distances (in any unit) of forget and retain vectors.

    The widest radius allowed holds at most the share `false_abstain` (below 1) of the retain vectors. Where it also holds 99 %
    of the forget vectors, the radius is the geometric mean of the one that these need and the widest allowed, but at most MARGIN
    times the former, because nothing is known about vectors of neither set. Otherwise the allowed share decides, and some forget
    vectors are missed, but never more than 1 - least_detected of them, even if more retain vectors are held.
    """
    ordered_N = retain_N.double().sort().values
    first_outside = float(ordered_N[math.floor(false_abstain * len(ordered_N))])
    widest = first_outside * (1 - SLACK)  # that vector itself stays outside, in any batch and on any device
    needed = holding(forget_N, 0.99)
    if needed < widest:
        return min(math.sqrt(needed * widest), MARGIN * needed)
    return max(widest, holding(forget_N, least_detected)) if least_detected > 0 else widest


def holding(distances_N: Tensor, share: float) -> float:
    """Returns the least radius that holds this share of the vectors."""
    ordered_N = distances_N.double().sort().values
    return float(ordered_N[max(0, math.ceil(share * len(ordered_N)) - 1)]) * (1 + SLACK)


def share_inside(distances_N: Tensor, radius: float) -> float:
    return float((distances_N <= radius).double().mean())
