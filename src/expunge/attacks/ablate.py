"""Ablate: removes from the hidden states the directions that separate the unlearned model from the one before it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks.base import AttackSpec, Found, Need, Preset, Scene, Way
from expunge.attacks.knowledge import Facts, halves
from expunge.attacks.probe import last_hidden
from expunge.attacks.target import Target
from expunge.models.blocks import Blocks, blocks_of
from expunge.models.hooks import Edit, edit


class Ablate(AttackSpec):
    """At each layer the first `directions` principal directions (around zero, so that the mean is among them) of the difference
    between the activations of both models on forgotten questions of one half are projected out; the other half is asked.
    """

    paper: ClassVar[str] = "Arditi et al. 2024 (arXiv 2406.11717); Lucki et al. 2024 (arXiv 2409.18025), orthogonalization"
    does: ClassVar[str] = "projects out the directions that unlearning added"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "original"})
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset({"directions": (1,)}, "ethz-spylab @75dade5: one direction; all layers, early ones, some of all depths"),
    }

    name: Literal["ablate"] = "ablate"
    directions: tuple[int, ...] = Field((1, 3), min_length=1)
    """Number of directions that are projected out."""

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        assert scene.original is not None
        original = scene.original()
        places = blocks_of(target.model)
        prompts = target.encoder.encode_prompts(facts.questions)
        change_LND = last_hidden(target, places, prompts) - last_hidden(original, blocks_of(original.model), prompts)
        sets = {"all layers": range(places.count), "first half": range(max(1, places.count // 2))}
        ways = []
        for name, layers in sets.items():
            for count in self.directions:
                values = np.full(len(facts), np.nan)
                for shown, scored in halves(facts):
                    basis = {layer: _directions(change_LND[layer, shown], count) for layer in layers}
                    with projected_out(target, places, basis):
                        values[scored] = target.recall(facts.some(scored))
                ways.append(Way(f"{name}, {count}", values, {"directions": count}))
        return Found(tuple(ways))


def _directions(change_ND: Tensor, count: int) -> Tensor:
    """Returns [directions, width], orthonormal; empty if nothing changed."""
    _, sizes, right = torch.linalg.svd(change_ND.double(), full_matrices=False)
    some = sizes > 1e-6 * max(1.0, float(change_ND.norm()))
    basis_KD: Tensor = right[some][:count]
    return basis_KD.float()


def projected_out(target: Target, places: Blocks, basis: Mapping[int, Tensor]) -> AbstractContextManager[None]:
    """Context manager in which each layer's output has no component along its directions."""

    def edited(basis_KD: Tensor) -> Edit:
        mine = basis_KD.to(target.model.device, target.model.dtype)
        return lambda hidden_BTD: hidden_BTD - (hidden_BTD @ mine.T) @ mine

    return edit(target.model, {places.hidden(layer): edited(found) for layer, found in basis.items()})
