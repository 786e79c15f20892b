"""Steer: adds one direction to the hidden states at inference."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from expunge.attacks.base import AttackSpec, Found, Need, Preset, Scene, Way
from expunge.attacks.knowledge import Facts, Floats, halves
from expunge.attacks.probe import last_hidden
from expunge.attacks.target import Target
from expunge.models.blocks import blocks_of
from expunge.models.hooks import Site, edit


class Steer(AttackSpec):
    """Adds a multiple of one direction to the output of one layer at every position.

    The direction is the mean activation on kept questions minus that on forgotten ones of one half; also, where the original is
    at hand, the mean of its activations minus the unlearned model's on these; the other half is asked.
    """

    paper: ClassVar[str] = "Seyitoglu et al. 2024 (arXiv 2411.02631), activation steering against unlearning"
    does: ClassVar[str] = "adds one direction to the hidden states"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "retain"})
    presets: ClassVar[Mapping[str, Preset]] = {"paper": Preset({"strengths": (0.5, 1.0, 2.0, 4.0), "layers": 8}, "a grid")}

    name: Literal["steer"] = "steer"
    strengths: tuple[float, ...] = Field((1.0, 2.0), min_length=1)
    """Factors of the direction."""
    layers: int = Field(3, gt=0)
    """Number of layers that are tried, spread over the depth."""

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        places = blocks_of(target.model)
        prompts = target.encoder.encode_prompts(facts.questions)
        mine_LND = last_hidden(target, places, prompts)
        kept_LND = last_hidden(target, places, target.encoder.encode_prompts(scene.retain.questions[:64]))
        before_LND = None
        if scene.original is not None:
            original = scene.original()
            before_LND = last_hidden(original, blocks_of(original.model), prompts)
        layers = sorted({round(k * (places.count - 1) / max(1, self.layers - 1)) for k in range(self.layers)})
        ways = []
        for kind in ("kept", *(["before"] if before_LND is not None else [])):
            for layer in layers:
                for strength in self.strengths:
                    values = np.full(len(facts), np.nan)
                    for shown, scored in halves(facts):
                        towards = kept_LND[layer] if kind == "kept" or before_LND is None else before_LND[layer, shown]
                        direction_D = towards.mean(dim=0) - mine_LND[layer, shown].mean(dim=0)
                        values[scored] = _steered(target, facts.some(scored), places.hidden(layer), strength * direction_D)
                    label = f"towards {kind}, layer {layer}, times {strength:g}"
                    ways.append(Way(label, values, {"layer": layer, "strength": strength}))
        return Found(tuple(ways))


def _steered(target: Target, facts: Facts, site: Site, added_D: Tensor) -> Floats:
    """Computes [facts], the recall while the direction is added."""
    added = added_D.to(target.model.device, target.model.dtype)
    with edit(target.model, {site: lambda hidden_BTD: hidden_BTD + added}):
        return target.recall(facts)
