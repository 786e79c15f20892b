"""Neuron Adjust: maps the activations of neurons that a skill excites to the values they have on retain texts.

Shape suffixes: B rows, T positions, F neurons of a layer, L layers, K chosen neurons (of one layer or of all).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.errors import ExpungeError
from expunge.methods.base import NOTHING, GuardingMethod, Resources, State
from expunge.models.token_policy import TokenPolicy
from expunge.records import Seed

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from expunge.guarding.forward_pass import Counts, ForwardPass
    from expunge.guarding.session import Session
    from expunge.models.activations import Moments


NeuronScore = Literal["mean_difference", "absolute_mean_difference", "cohen_d", "jeffreys"]

DRAWN_AT_ONCE = 2**20
"""Up to this many random numbers are drawn for all layers together."""
FLOOR = 1e-6
"""Smallest standard deviation, for neurons that were constant in the probe."""


class NeuronAdjust(GuardingMethod):
    """Pre-activations of the chosen neurons are modelled by one Gaussian on the forget and one on the retain texts. A value x
    that is likelier under the forget Gaussian is changed, with the probability that it came from there, to its mirror image
    under the retain Gaussian:

        P(change) = p_f(x) / (p_f(x) + p_r(x)) if p_f(x) >= p_r(x), else 0;     x' = mu_r - (sigma_r / sigma_f) (x - mu_f)

    x' of a forget value follows the retain Gaussian. Neurons are chosen by how much more they are excited on the forget texts:
    score mu_f - mu_r, the highest `percent` of all layers together. Densities are compared by their log-likelihood ratio, in
    float32, so that outliers, whose densities would both be 0, are decided too.

    Each value has its own draw, a hash of (draw_seed, layer, neuron, the tokens of the row up to here): the same row gives the
    same draws in any batch, under any padding, as a beam, with a cache or without, and other rows give independent ones.
    """

    paper: ClassVar[str] = "Li et al. 2025, arXiv 2503.21730 (Neuron Adjust)"
    formula: ClassVar[str] = (
        "x' = mu_r - (sigma_r/sigma_f)(x - mu_f) with probability sigmoid(llr) where llr = log p_f(x)/p_r(x) >= 0"
    )
    cost: ClassVar[str] = (
        "one forward pass over both sets to fit; then a few operations on the chosen neurons; six numbers per neuron"
    )
    purpose: ClassVar[str] = "a skill or language, at run time"
    weakness: ClassVar[str] = "a guard: the weights still know it"

    name: Literal["neuron_adjust"] = "neuron_adjust"
    percent: float = Field(3.0, gt=0, le=100)
    """Share of neurons that are adjusted, in percent (published: 0.5, 1.5 and 3)."""
    score: NeuronScore = "mean_difference"
    """How neurons are ranked: mu_f - mu_r (published), its absolute value, the difference over the pooled standard deviation
    (Cohen's d), or the symmetric divergence of the two Gaussians (Jeffreys)."""
    scope: Literal["global", "layer"] = "global"
    """Take the share of all neurons together, or of each layer."""
    mirror: bool = True
    """Mirror around the retain mean, as published; otherwise x' = mu_r + (sigma_r / sigma_f) (x - mu_f), which keeps the order.
"""
    stochastic: bool = True
    """Change a value with the probability above; otherwise, whenever the forget Gaussian is the likelier one."""
    positions: Literal["all", "prompt", "generated"] = "all"
    """Tokens whose values are adjusted. In a forward pass without a known prompt (plain scoring), everything without a cache
    counts as prompt."""
    tokens: TokenPolicy = "all"
    """Tokens over which the statistics are taken: all, last_prompt, or generated (those of the answer)."""
    skip_start: bool = False
    """Leave the start token out of the statistics; the published probe has it in."""
    compat: Literal["none", "released"] = "none"
    """released: as the published hook computes, for comparison: the forget mean takes the place of the forget standard
    deviation (so neurons with a negative mean are never changed), the retain variance that of the retain standard deviation,
    and one draw decides for a whole layer of a row."""
    draw_seed: Seed = 0
    """Seed of the random draws."""

    def require(self, request: Request) -> None:
        if not request.retain:
            raise ExpungeError("neuron_adjust compares forget texts with retain texts; give --retain")

    def fit(self, model: nn.Module, request: Request, encoder: Encoder, resources: Resources = NOTHING) -> State:
        from expunge.models.activations import probe
        from expunge.models.spans import spans

        found = [
            probe(model, spans(rows, encoder, self.tokens, skip_start=self.skip_start), encoder.pad_id, roles=("pre_activation",))
            for rows in (request.forget, request.retain)
        ]
        return self.select(*(f.moments["pre_activation"] for f in found))

    def select(self, forget: Moments, retain: Moments) -> State:
        """Builds the state from two probes: the chosen neurons, by layer, with the two Gaussians of each."""
        import torch

        layer_K, neuron_K = chosen(scores(forget, retain, self.score), self.percent, self.scope)
        gaussians = {
            "forget_mean": forget.mean_LF,
            "forget_std": forget.std_LF(),
            "retain_mean": retain.mean_LF,
            "retain_std": retain.std_LF(),
        }
        counted = {"forget_tokens": torch.tensor(forget.n), "retain_tokens": torch.tensor(retain.n)}
        found = {n: t[layer_K, neuron_K] for n, t in gaussians.items()}
        return State({"layer": layer_K, "neuron": neuron_K, **found, **counted})

    @contextmanager
    def attach(self, model: nn.Module, state: State, encoder: Encoder) -> Iterator[Counts]:
        from expunge.guarding.forward_pass import Counts
        from expunge.guarding.session import open_session
        from expunge.models.blocks import blocks_of
        from expunge.models.hooks import edit

        places = blocks_of(model)
        layers = state["layer"].unique().tolist()
        if layers and layers[-1] >= places.count:
            raise ExpungeError(
                f"the guard adjusts layer {layers[-1]}, but this model has layers 0 to {places.count - 1} only; attach it to the "
                "model that it was fitted on"
            )
        with open_session(model) as session:
            adjuster = Adjuster(self, session, state)
            with edit(model, {places.pre_activation(i): partial(adjuster, i) for i in layers}):
                yield Counts()

    def summary(self, state: State) -> str:
        layers, counts = state["layer"].unique(return_counts=True)
        return (
            f"Adjusts {len(state['layer'])} neurons in {len(layers)} layers (most in layer {int(layers[counts.argmax()])}), "
            f"fitted on {int(state['forget_tokens'])} forget and {int(state['retain_tokens'])} retain tokens."
        )


class Adjuster:
    """Neuron Adjust attached to one model: the chosen neurons of each layer, and the draws of the current forward pass."""

    def __init__(self, method: NeuronAdjust, session: Session, state: State) -> None:
        import torch

        self.method, self.session = method, session
        self.layers = {layer: Neurons.of(method, state, layer).single() for layer in state["layer"].unique().tolist()}
        self.key_K, self.least_K = (torch.cat([getattr(n, name) for n in self.layers.values()]) for name in ("key_K", "least_K"))

    def __call__(self, layer: int, values_BTF: Tensor) -> Tensor:
        """Changes the values of one layer. The time of a decoding step is proportional to the number of operations here."""
        import torch

        neurons, here = self.layers[layer], self.session.current
        if neurons.index_K.device != values_BTF.device:
            neurons.to(values_BTF.device)
        known = here.storage.get(self)
        least_BTK = (self._threshold(here, layer) if known is None else known[layer]).to(values_BTF.device)
        x_BTK = values_BTF.index_select(-1, neurons.index_K).float()
        apart_BTK, sum_BTK, image_BTK = neurons.lines(x_BTK).unbind()
        after_BTK = torch.where(apart_BTK * sum_BTK >= least_BTK, image_BTK, x_BTK).to(values_BTF.dtype)
        return values_BTF.index_copy_(-1, neurons.index_K, after_BTK)  # nobody else holds a linear map's output

    def _threshold(self, here: ForwardPass, layer: int) -> Tensor:
        """Computes the value of `apart * sum` from which a value is changed, [B, T, K]. With a draw u this is where the
        log-likelihood ratio is max(0, logit u), so that P(change) = P(u <= sigmoid(llr)) = sigmoid(llr) where llr >= 0."""
        if here.rows * here.width * len(self.key_K) > DRAWN_AT_ONCE:
            return self._draw(here, self.layers[layer].key_K, self.layers[layer].least_K)
        # one draw for all layers spares a decoding step most of its small operations
        parts = self._draw(here, self.key_K, self.least_K).split([len(n.index_K) for n in self.layers.values()], dim=-1)
        drawn: dict[int, Tensor] = dict(zip(self.layers, parts, strict=True))
        here.storage[self] = drawn
        return drawn[layer]

    def _draw(self, here: ForwardPass, key_K: Tensor, least_K: Tensor) -> Tensor:
        import torch

        from expunge.guarding.random_bits import uniform

        key_K, least_K = key_K.to(here.device), least_K.to(here.device)
        if not self.method.stochastic:
            threshold_BTK = least_K[None, None]
        else:
            prefix_BT = here.prefix_BT
            if self.method.compat == "released":
                prefix_BT = prefix_BT.gather(1, (here.width - 1 - here.mask_BT.long().flip(1).argmax(dim=1))[:, None])
            logit_BTK = _logit(uniform(prefix_BT[..., None] ^ key_K)).clamp_(min=0)
            threshold_BTK = torch.add(least_K, logit_BTK, alpha=2)
        if self.method.positions == "all":
            return threshold_BTK
        generated_BT = here.generated_BT
        skipped_BT = generated_BT if self.method.positions == "prompt" else ~generated_BT
        return threshold_BTK.masked_fill(skipped_BT[..., None], math.inf)


@dataclass
class Neurons:
    """The chosen neurons of one layer, ready for use. With z_f = (x - mu_f) / sigma_f and z_r likewise,

        log p_f(x) - log p_r(x) = (z_r^2 - z_f^2) / 2 + ln(sigma_r / sigma_f),      z_r^2 - z_f^2 = (z_r - z_f) (z_r + z_f)

    so that with the image three lines in x decide all, in float32 and without a difference of squares. (Densities in the model's
    dtype, as the published hook has them, are both 0 far from the means, and the farthest outliers are never changed.)
    """

    index_K: Tensor
    slope_3K: Tensor
    """Slopes of z_r - z_f, of z_r + z_f and of the image, [3, 1, 1, K]."""
    offset_3K: Tensor
    least_K: Tensor
    """Product of the first two from which the log-likelihood ratio is not negative; infinite where a neuron never changes."""
    key_K: Tensor
    """int64 hash of seed, layer and neuron."""

    @classmethod
    def of(cls, method: NeuronAdjust, state: State, layer: int) -> Neurons:
        import torch

        from expunge.guarding.random_bits import mix

        mine_K = (state["layer"] == layer).nonzero()[:, 0]
        index_K = state["neuron"][mine_K]
        mean_f, mean_r = state["forget_mean"][mine_K].double(), state["retain_mean"][mine_K].double()
        std_f, std_r = state["forget_std"][mine_K].double(), state["retain_std"][mine_K].double()
        never = torch.zeros_like(mean_f, dtype=torch.bool)
        if method.compat == "released":
            never, std_f, std_r = mean_f <= 0, mean_f, std_r.square()
        std_f, std_r = std_f.clamp(min=FLOOR), std_r.clamp(min=FLOOR)
        slope_K = std_r / std_f * (-1 if method.mirror else 1)
        slopes = (1 / std_r - 1 / std_f, 1 / std_r + 1 / std_f, slope_K)
        offsets = (mean_f / std_f - mean_r / std_r, -mean_f / std_f - mean_r / std_r, mean_r - slope_K * mean_f)
        return cls(
            index_K,
            slope_3K=torch.stack(slopes)[:, None, None],
            offset_3K=torch.stack(offsets)[:, None, None],
            least_K=(2 * torch.log(std_f / std_r)).masked_fill(never, math.inf),
            key_K=mix(mix(mix(torch.tensor(method.draw_seed)) + layer) + index_K * (method.compat == "none")),
        )

    def single(self) -> Neurons:
        """Returns the same in float32."""
        return Neurons(self.index_K, self.slope_3K.float(), self.offset_3K.float(), self.least_K.float(), self.key_K)

    def to(self, device: torch.device) -> None:
        """Moves the tensors to the device of the layer, in place, once."""
        import torch

        with torch.inference_mode(False):  # later passes may record gradients
            for name, value in vars(self).items():
                setattr(self, name, value.to(device))

    def lines(self, x_BTK: Tensor) -> Tensor:
        """Computes z_r - z_f, z_r + z_f and the image mu_r -+ (sigma_r / sigma_f) (x - mu_f); [3, B, T, K]."""
        import torch

        return torch.addcmul(self.offset_3K, self.slope_3K, x_BTK)


def scores(forget: Moments, retain: Moments, score: NeuronScore) -> Tensor:
    """Scores how much a neuron belongs to the forget set, [L, F]."""
    difference_LF = forget.mean_LF - retain.mean_LF
    forget_LF, retain_LF = forget.variance_LF().clamp(min=FLOOR**2), retain.variance_LF().clamp(min=FLOOR**2)
    match score:
        case "mean_difference":
            return difference_LF
        case "absolute_mean_difference":
            return difference_LF.abs()
        case "cohen_d":
            return difference_LF / ((forget_LF + retain_LF) / 2).sqrt()
        case "jeffreys":
            spread_LF = (forget_LF / retain_LF + retain_LF / forget_LF) / 2 - 1
            return spread_LF + difference_LF.square() * (1 / forget_LF + 1 / retain_LF) / 2


def chosen(scores_LF: Tensor, percent: float, scope: Literal["global", "layer"]) -> tuple[Tensor, Tensor]:
    """Returns (layer_K, neuron_K) of the highest `percent` of scores, in order, with all ties at the threshold.

    Of N neurons the threshold is the floor(N (1 - percent/100))-th lowest score counted from 0, so ceil(N percent/100) are
    chosen; the share is taken as the decimal number that was written, not as its nearest float.
    """
    rows = scores_LF.flatten()[None] if scope == "global" else scores_LF
    count = math.ceil(rows.shape[1] * Fraction(str(percent)) / 100)
    threshold = rows.kthvalue(rows.shape[1] - count + 1, dim=1, keepdim=True).values
    layer_K, neuron_K = (rows >= threshold).view_as(scores_LF).nonzero(as_tuple=True)
    return layer_K, neuron_K


def _logit(draw: Tensor) -> Tensor:
    """log(u / (1 - u)); torch's own is several times as slow."""
    import torch

    return torch.log(draw / (1 - draw))
