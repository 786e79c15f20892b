"""Quantize: rounds the weights, which may undo an unlearning with small changes."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from expunge.attacks.base import AttackSpec, Found, Need, Preset, Scene, Way
from expunge.attacks.knowledge import Facts
from expunge.attacks.target import Target
from expunge.models.rounding import ROUNDINGS, compress


def magnitude(weight_OI: Tensor, share: float) -> Tensor:
    """Sets the smallest weights of the matrix to zero (Han et al. 2015)."""
    count = int(share * weight_OI.numel())
    if count == 0:
        return weight_OI
    border = weight_OI.abs().flatten().kthvalue(count).values
    return torch.where(weight_OI.abs() <= border, torch.zeros_like(weight_OI), weight_OI)


FORMATS: Mapping[str, Callable[[Tensor], Tensor]] = {
    **ROUNDINGS,
    "magnitude_20": lambda w: magnitude(w, 0.2),
    "magnitude_40": lambda w: magnitude(w, 0.4),
}
"""Format -> function from a matrix [out, in] in float32 to what is left of it."""


class Quantize(AttackSpec):
    """Rounds the matrices of all linear layers, in eight formats, and asks the plain questions."""

    paper: ClassVar[str] = "Zhang et al. 2024 (arXiv 2410.16454): 4-bit rounding gives back up to 83 % of what was unlearned"
    does: ClassVar[str] = "rounds the weights to 8 or 4 bits, or prunes the smallest"
    needs: ClassVar[frozenset[Need]] = frozenset({"weights"})
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset({"formats": ("int8_channel", "nf4")}, "FailureLLMUnlearning: bitsandbytes' int8 and NF4"),
    }

    name: Literal["quantize"] = "quantize"
    formats: tuple[str, ...] = tuple(FORMATS)
    """Formats that are tried."""

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        ways = []
        for format in self.formats:
            with target.restored() as model:
                compress(model, FORMATS[format])
                ways.append(Way(format, target.recall(facts)))
        return Found(tuple(ways))
