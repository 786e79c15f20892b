"""Noise: adds random noise to all weights, which may undo small changes made by unlearning."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from expunge.attacks.base import AttackSpec, Found, Need, Preset, Scene, Way
from expunge.attacks.knowledge import Facts
from expunge.attacks.target import Target
from expunge.models.rounding import linear_weights


class Noise(AttackSpec):
    """Adds Gaussian noise to the matrices of all linear layers: sigma times the standard deviation of each matrix."""

    paper: ClassVar[str] = "Tice et al. 2024 (arXiv 2412.01784), noise injection that reveals hidden capabilities"
    does: ClassVar[str] = "adds random noise to the weights"
    needs: ClassVar[frozenset[Need]] = frozenset({"weights"})
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset({"sigmas": (0.01, 0.02, 0.05, 0.1, 0.2), "repeats": 5}, "a grid of strengths, several draws each"),
    }

    name: Literal["noise"] = "noise"
    sigmas: tuple[float, ...] = Field((0.03, 0.1, 0.2), min_length=1)
    """Standard deviations of the noise, relative to that of each matrix."""
    repeats: int = Field(2, gt=0)
    """Draws of each strength; each is a separate way."""

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        ways = []
        for sigma in self.sigmas:
            for repeat in range(self.repeats):
                generator = torch.Generator().manual_seed(scene.seed + repeat)
                with target.restored() as model, torch.no_grad():
                    for weight, _ in linear_weights(model):
                        drawn = torch.randn(weight.shape, generator=generator).to(weight.device)
                        weight.add_((sigma * weight.float().std() * drawn).to(weight.dtype))
                    ways.append(Way(f"sigma {sigma:g}, draw {repeat + 1}", target.recall(facts), {"sigma": sigma}))
        return Found(tuple(ways))
