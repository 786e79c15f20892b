"""Latent: adds an optimized perturbation to the hidden states, one for all questions."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks.base import AttackSpec, Found, Need, Preset, Scene, Way
from expunge.attacks.knowledge import Facts, halves
from expunge.attacks.probe import last_hidden
from expunge.attacks.relearn import answer_loss
from expunge.attacks.target import Target
from expunge.data.encode import Encoded
from expunge.models.blocks import blocks_of
from expunge.models.hooks import Edit, Site, edit


class Latent(AttackSpec):
    """Adds one vector to the output of a layer at every position, optimized for the true answers of one half of the facts
    and scored on the other. Its length stays below `epsilon` times the mean length of the hidden states there.
    """

    paper: ClassVar[str] = "Sheshadri et al. 2024 (arXiv 2407.15549), latent adversarial training; EleutherAI/unlearn @1a6079f"
    does: ClassVar[str] = "optimizes a perturbation of hidden states in a ball"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations"})
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset({"steps": 64, "rate": 1e-3, "layers": 4}, "EleutherAI/unlearn @1a6079f: 64 steps, 1e-3"),
    }

    name: Literal["latent"] = "latent"
    steps: int = Field(16, gt=0)
    rate: float = Field(0.1, gt=0)
    """Adam's step size, in units of the ball's radius over the square root of the width."""
    epsilons: tuple[float, ...] = Field((0.3, 1.0), min_length=1)
    """Radius of the ball, relative to the mean length of the hidden states."""
    layers: int = Field(2, gt=0)
    """Number of layers that are tried, spread over the lower two thirds."""

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        places = blocks_of(target.model)
        rows = target.encoded(facts.examples)
        length_L = last_hidden(target, places, target.encoder.encode_prompts(facts.questions[:32])).norm(dim=-1).mean(dim=1)
        last = max(0, (2 * places.count) // 3 - 1)
        layers = sorted({round(k * last / max(1, self.layers - 1)) for k in range(self.layers)})
        ways = []
        for layer in layers:
            for epsilon in self.epsilons:
                values = np.full(len(facts), np.nan)
                for shown, scored in halves(facts):
                    site, radius = places.hidden(layer), epsilon * float(length_L[layer])
                    found_D = self._optimized(target, [rows[i] for i in shown], site, radius)
                    with edit(target.model, {site: _adding(found_D)}):
                        values[scored] = target.recall(facts.some(scored))
                ways.append(Way(f"layer {layer}, epsilon {epsilon:g}", values, {"layer": layer, "epsilon": epsilon}))
        return Found(tuple(ways))

    def _optimized(self, target: Target, rows: Sequence[Encoded], site: Site, radius: float) -> Tensor:
        """Returns [width], the perturbation with the lowest loss on the rows, found by projected Adam."""
        width = target.embeddings_VD.shape[1]
        delta_D = torch.zeros(width, device=target.model.device, requires_grad=True)
        optimizer = torch.optim.Adam([delta_D], lr=self.rate * radius / width**0.5)
        with target.restored() as model, edit(model, {site: _adding(delta_D)}):
            for weight in model.parameters():
                weight.requires_grad_(False)
            for _ in range(self.steps):
                (delta_D.grad,) = torch.autograd.grad(answer_loss(model, rows, target.encoder.pad_id), delta_D)
                optimizer.step()
                target.spent["gradient_steps"] += 1
                with torch.no_grad():
                    delta_D *= min(1.0, radius / max(1e-12, float(delta_D.norm())))
        return delta_D.detach()


def _adding(delta_D: Tensor) -> Edit:
    """Returns an edit that adds the current value of the vector."""
    return lambda hidden_BTD: hidden_BTD + delta_D.to(hidden_BTD.dtype)
