"""Selective pruning: removes the MLP neurons that matter more to the forget texts than to the retain texts.

Shape suffixes: L layers, F neurons of an MLP, D model width, K chosen neurons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.errors import ExpungeError
from expunge.methods.base import InPlaceEditing
from expunge.methods.guarding.neuron_adjust import chosen
from expunge.models.token_policy import TokenPolicy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from expunge.models.activations import Moments


Importance = Literal["abs", "rms", "std", "frequency"]


class SelectivePruning(InPlaceEditing):
    """A neuron is an input of the MLP's down projection. Its importance I on a set of texts is the mean of |a| over tokens (abs),
    the root mean square (rms), the standard deviation (std), or the share of tokens with a > 0 (frequency). The highest
    `percent` by

        I_forget / (I_retain + epsilon)

    are pruned: their columns of the down projection are set to zero, which equals setting these activations to zero, and gives a
    plain checkpoint. With `rounds` > 1 an equal part is pruned in each round, and importance is measured again.
    """

    paper: ClassVar[str] = "Pochinkov & Schoots 2024, arXiv 2403.01267"
    formula: ClassVar[str] = "W_down[:, j] = 0 for the highest I_forget(j) / (I_retain(j) + epsilon)"
    cost: ClassVar[str] = "one forward pass over both sets per round"
    purpose: ClassVar[str] = "a skill: silences the neurons that serve it most"
    weakness: ClassVar[str] = "neurons are shared, so other skills suffer"

    name: Literal["selective_pruning"] = "selective_pruning"
    percent: float = Field(1.5, gt=0, le=100)
    """Share of neurons that are pruned in all, in percent (published beside Neuron Adjust: 1.5 for GSM8K, 0.01 for MBPP)."""
    importance: Importance = "abs"
    """Mean |a|, root mean square, standard deviation, or share of tokens with a > 0."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the retain importance, so that the score of a neuron that the retain texts do not use is finite (published:
    1e-8, and 1e-3 in the original)."""
    scope: Literal["global", "layer"] = "global"
    """Take the share of all neurons together, or of each layer."""
    rounds: int = Field(1, ge=1)
    """Number of rounds, each of which prunes an equal part after measuring importance again."""
    tokens: TokenPolicy = "all"
    """Tokens over which importance is measured: all, last_prompt, or generated (those of the answer)."""
    skip_start: bool = False
    """Leave the start token out of the statistics."""

    def require(self, request: Request) -> None:
        if not request.retain:
            raise ExpungeError("selective_pruning compares forget texts with retain texts; give --retain")

    def apply(self, model: nn.Module, request: Request, encoder: Encoder) -> str:
        import torch

        from expunge.models.activations import probe
        from expunge.models.blocks import blocks_of
        from expunge.models.spans import spans

        texts = [spans(rows, encoder, self.tokens, skip_start=self.skip_start) for rows in (request.forget, request.retain)]
        places = blocks_of(model)
        pruned_LF = torch.zeros(places.count, places.d_ff, dtype=torch.bool)
        for round_ in range(1, self.rounds + 1):
            forget, retain = (probe(model, rows, encoder.pad_id, roles=("key",)).moments["key"] for rows in texts)
            pruned_LF |= self.select(forget, retain, pruned_LF, self.percent * round_ / self.rounds)
            prune(model, pruned_LF)
        counts = pruned_LF.sum(dim=1)
        most = f"{int(counts.max())} of them in layer {int(counts.argmax())}"
        return f"Pruned {int(counts.sum())} of {pruned_LF.numel()} neurons, {most}."

    def select(self, forget: Moments, retain: Moments, pruned_LF: Tensor, percent: float) -> Tensor:
        """Returns a mask of the `percent` of neurons with the highest scores, [L, F]; those pruned before come first."""
        import torch

        scores_LF = importance(forget, self.importance) / (importance(retain, self.importance) + self.epsilon)
        layer_K, neuron_K = chosen(scores_LF.masked_fill(pruned_LF, torch.inf), round(percent, 12), self.scope)
        selected_LF = torch.zeros_like(pruned_LF)
        selected_LF[layer_K, neuron_K] = True
        return selected_LF


def importance(moments: Moments, kind: Importance) -> Tensor:
    """Computes the importance of every neuron, [L, F]."""
    match kind:
        case "abs":
            return moments.abs_LF / moments.n
        case "rms":
            return moments.rms_LF()
        case "std":
            return moments.std_LF()
        case "frequency":
            return moments.positive_LF / moments.n


def prune(model: nn.Module, pruned_LF: Tensor) -> None:
    """Sets to zero the columns of the down projections that read the marked neurons; biases are unchanged."""
    from expunge.models.blocks import blocks_of

    places = blocks_of(model)
    for layer, pruned_F in enumerate(pruned_LF):
        weight = places.root.get_parameter(places.down_proj(layer)).detach()
        columns = weight if not places.transposed else weight.T
        columns[:, pruned_F.to(weight.device)] = 0
