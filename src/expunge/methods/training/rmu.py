"""RMU: moves the hidden states of forget texts towards a random direction, and keeps those of retain texts unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field

from expunge.data.encode import Tokens
from expunge.data.example import Request
from expunge.data.split import rows_by_attribute
from expunge.devices import moved
from expunge.errors import ExpungeError
from expunge.methods.training.base import FORGET, RETAIN, Batch, RowSet, Term, TrainingMethod
from expunge.records import Seed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from expunge.models.blocks import Blocks
    from expunge.models.partial_forward import PartialForward


COEFFICIENT = 6.5
ADAPTIVE_COEFFICIENT = 5.0


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


def _not_negative(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(not 0 <= value < float("inf") for value in values):
        raise ValueError("give numbers that are not negative")
    return values


Each = Annotated[tuple[float, ...], BeforeValidator(_listed), AfterValidator(_not_negative)]
"""One number for all forget domains, or one for each."""


class Distance(NamedTuple):
    """Mean squared distances of hidden states to their targets, over D and then over the tokens of a row, and over rows."""

    all: Tensor
    without_first: Tensor
    """The distance without the first token of each row (the attention sink)."""


class RMU(TrainingMethod):
    """L = mean over rows, tokens, D of (h - c u)^2 (forget)  +  alpha * the same mean of (h - h_start)^2 (retain).

    h, h_start: hidden states after block `layer` of the model and of the start model. u: a random unit vector with positive
    coordinates, one for each forget domain; steps take the domains in turn. Only the down projections of `layer` and the two
    blocks before it move, by role and not by index (index 6 is the output of attention in Qwen2, and a norm in today's Mixtral).

    Means over D as in the release, which changes neither the ratio of the terms nor Adam's steps. Pads do not count. The first
    token of a row is the attention sink: its norm is about a hundred times that of other tokens, so that it makes up most of
    the forget loss; metrics.jsonl has both terms with and without it, and `exclude_bos` leaves it out of the loss.

    The forward pass ends at `layer`. The blocks below the first edited one run once, without gradient, for both passes over the
    retain rows; for the start model's pass, which has no dropout, the start values of the edited matrices are swapped in. Known
    limit: forget tokens collapse onto one direction, so that a few steps of fine-tuning, or removing this direction, restore
    most of the knowledge.
    """

    paper: ClassVar[str] = "Li et al. 2024, arXiv 2403.03218; adaptive: Dang et al. 2024, arXiv 2408.06223"
    formula: ClassVar[str] = "L = |h - c u|^2(forget) + alpha |h - h_start|^2(retain), h after block `layer`"
    cost: ClassVar[str] = "forward to `layer`, gradient of three matrices and a copy of them; one of four passes without gradient"
    purpose: ClassVar[str] = "hazardous domains: scrambles what a layer makes of such texts"
    weakness: ClassVar[str] = "answers become gibberish; relearned in few steps"
    learning_rate: ClassVar[float] = 5e-5

    name: Literal["rmu"] = "rmu"
    layer: int | Literal["auto"] = "auto"
    """Block whose output the loss reads, counted from 0. Negative: counted from the end. auto: 7/32 of the depth, as published,
    and at least 2, so that three blocks are trained."""
    edited: tuple[int, ...] = ()
    """Blocks whose weights are trained; default: `layer` and the two before it."""
    role: Literal["down_proj", "attention_out"] = "down_proj"
    """Which matrix of an edited block is trained: the last one of the MLP (in a mixture of experts, those of all experts), or
    the last one of attention."""
    alpha: Each = Field((1200.0,), min_length=1)
    """Factor of the retain term; one number, or one for each forget domain."""
    coefficient: Each = ()
    """Norm of the forget target (c); with `adaptive`, a factor of the norm of the hidden states. One number, or one for each
    forget domain; default: 6.5, and 5 with `adaptive`."""
    adaptive: bool = False
    """Set the target's norm to `coefficient` times the mean norm of the start model's hidden states after `layer` on forget
    rows, so that the same coefficient suits any layer of any model."""
    domains: str | None = None
    """Attribute whose values are the forget domains; default: each forget file is a domain."""
    exclude_bos: bool = False
    """Leave the first token of each row, usually BOS, out of both terms."""
    control_seed: Seed = 42
    """Seed of the random directions."""
    stop_below_cosine: float | None = Field(None, gt=-1, lt=1)
    """Stop if, in every domain, the mean cosine between the hidden states of 16 fixed forget rows and their start values is
    below this; 0.5 in SPUNGE. Checked every `stop_every` steps."""
    compat: Literal["none", "wmdp"] = "none"
    """wmdp: as the release computes it, to compare with published numbers: left padding, pads count in both means, directions
    are drawn in the model's dtype."""

    @property
    def row_sets(self) -> Mapping[str, RowSet]:
        return {"forget": FORGET, "retain": RETAIN} if any(self.alpha) else {"forget": FORGET}

    @property
    def needs_start_weights(self) -> bool:
        return True

    @property
    def pad_side(self) -> Literal["right", "left"]:
        return "left" if self.compat == "wmdp" else "right"

    @property
    def rows_are_independent(self) -> bool:
        return self.compat == "none"  # pads, which depend on the neighbors, count in the release

    @property
    def leaves_depth_open(self) -> bool:
        return self.layer == "auto"

    def for_depth(self, blocks: int) -> Self:
        return self.model_copy(update={"layer": published_layer(blocks)}) if self.layer == "auto" else self

    def candidates(self, model: nn.Module) -> set[str]:
        from expunge.models.blocks import blocks_of

        places = blocks_of(model)
        blocks = self._edited(places)
        mlp, attention = (name for i in blocks for name in places.mlp_out(i)), map(places.attention_out, blocks)
        wanted = set(mlp if self.role == "down_proj" else attention)
        return {name for name, _ in model.named_parameters() if name in wanted}

    def forget_parts(self, request: Request) -> tuple[tuple[int, ...], ...]:
        if self.domains is not None:
            parts = tuple(rows_by_attribute(request.forget, self.domains).values())
        else:
            ends = [0, *accumulate(request.forget_sources or (len(request.forget),))]
            parts = tuple(tuple(range(start, stop)) for start, stop in pairwise(ends) if stop > start)
        self._check_counts(len(parts))
        return parts

    def for_part(self, part: int, parts: int) -> RMU:
        """Returns the method with the numbers of that domain, and its own random direction."""
        self._check_counts(parts)
        own = {"alpha": _of(self.alpha, part), "coefficient": _of(self.coefficient, part)}
        return self.model_copy(update={**own, "control_seed": self.control_seed + part, "domains": None})

    def prepare(self, model: nn.Module, probes: Sequence[Tokens]) -> Mapping[str, Tensor]:
        """Computes norms [domains] for the adaptive targets, and hidden states of the probes, to compare with later."""
        import torch

        prepared: dict[str, Tensor] = {}
        if self.adaptive:
            prepared["norm"] = torch.stack([self._states(model, probe).norm(dim=-1).mean() for probe in probes])
        if self.stop_below_cosine is not None:
            prepared |= {f"probe {i}": self._states(model, probe) for i, probe in enumerate(probes)}
        return prepared

    def finished(self, model: nn.Module, probes: Sequence[Tokens], prepared: Mapping[str, Tensor]) -> str | None:
        from torch.nn.functional import cosine_similarity

        if self.stop_below_cosine is None:
            return None
        cosines = [
            float(cosine_similarity(self._states(model, probe), prepared[f"probe {i}"], dim=-1).mean())
            for i, probe in enumerate(probes)
        ]
        if max(cosines) >= self.stop_below_cosine:
            return None
        said = ", ".join(f"{cosine:.2f}" for cosine in cosines)
        return f"the hidden states of forget rows have cosine {said} with their start, below {self.stop_below_cosine}"

    def terms(self, model: nn.Module, batch: Batch) -> Iterator[Term]:
        from expunge.models.blocks import blocks_of
        from expunge.models.partial_forward import partial_forward

        if batch.start_weights is None:
            raise ValueError("this batch carries no start weights: the loop must see `needs_start_weights`")
        places = blocks_of(model)
        first, layer = min(self._edited(places)), self._layer(places)
        (alpha,) = _of(self.alpha, batch.part)
        if alpha:
            start = self._start(model, batch.retain, batch.start_weights, first, layer)
            now = partial_forward(model, batch.retain, first, layer, start.entering)
            yield self._term("retain", self._distance(now.hidden_BTD, start.hidden_BTD, batch.retain), alpha)
        hidden_BTD = partial_forward(model, batch.forget, first, layer).hidden_BTD
        yield self._term("forget", self._distance(hidden_BTD, self._target(batch, hidden_BTD), batch.forget))

    def _term(self, name: str, distance: Distance, weight: float = 1.0) -> Term:
        """Computes the distance that counts in the loss, and records it with and without the first token of each row."""
        value = distance.without_first if self.exclude_bos else distance.all
        record = {name: distance.all.detach(), f"{name}_without_bos": distance.without_first.detach()}
        return Term(name, value, weight, rows=name, record=record)

    def _start(self, model: nn.Module, tokens: Tokens, weights: Mapping[str, Tensor], first: int, layer: int) -> PartialForward:
        """Computes the start model's states, and the input of its first edited block, from which the pass with gradient
        continues."""
        import torch

        from expunge.models.partial_forward import exchanged, partial_forward

        was_training = model.training
        model.eval()  # as for every frozen quantity: dropout would be noise in the target
        with torch.no_grad(), exchanged(model, weights):
            start = partial_forward(model, tokens, first, layer)
        model.train(was_training)
        return start

    def _target(self, batch: Batch, hidden_BTD: Tensor) -> Tensor:
        """Computes c u [D], float32, drawn from the seed each time, domain by domain in order, so that nothing has to be
        stored."""
        import torch

        width = hidden_BTD.shape[-1]
        dtype = hidden_BTD.dtype if self.compat == "wmdp" else torch.float32
        generator = torch.Generator().manual_seed(self.control_seed)
        drawn = [torch.rand(width, generator=generator, dtype=dtype) for _ in range(batch.part + 1)]
        unit_D: Tensor = moved(drawn[-1] / drawn[-1].norm(), hidden_BTD.device)
        (factor,) = _of(self.coefficient, batch.part) or (ADAPTIVE_COEFFICIENT if self.adaptive else COEFFICIENT,)
        return unit_D * factor * batch.prepared["norm"][batch.part] if self.adaptive else unit_D * factor

    def _distance(self, hidden_BTD: Tensor, target: Tensor, tokens: Tokens) -> Distance:
        import torch

        squared_BT = (hidden_BTD.float() - target.float()).square().mean(-1)
        counted_BT = torch.ones_like(tokens.attention_mask_BT) if self.compat == "wmdp" else tokens.attention_mask_BT
        after_BT = counted_BT * (counted_BT.cumsum(1) > 1)
        return Distance(_mean(squared_BT, counted_BT), _mean(squared_BT, after_BT))

    def _states(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """Computes hidden states [N, D] at the tokens that count in the loss, float32, without dropout."""
        from expunge.models.blocks import blocks_of
        from expunge.models.partial_forward import partial_forward

        places = blocks_of(model)
        layer = self._layer(places)
        was_training = model.training
        model.eval()
        hidden_BTD = partial_forward(model, tokens, layer, layer).hidden_BTD
        model.train(was_training)
        counted_BT = tokens.attention_mask_BT
        if self.exclude_bos:
            counted_BT = counted_BT * (counted_BT.cumsum(1) > 1)
        return hidden_BTD[counted_BT.bool()].float()

    def _check_counts(self, parts: int) -> None:
        for name, values in (("alpha", self.alpha), ("coefficient", self.coefficient)):
            if len(values) not in (0, 1, parts):
                raise ExpungeError(
                    f"--{name} has {len(values)} numbers for {parts} forget domains; give one for all, or one for each in order"
                )

    def _layer(self, places: Blocks) -> int:
        layer = published_layer(places.count) if self.layer == "auto" else self.layer
        places.block(layer)  # raises where there is none
        return layer % places.count

    def _edited(self, places: Blocks) -> list[int]:
        layer = self._layer(places)
        if not self.edited:
            return list(range(max(layer - 2, 0), layer + 1))
        for i in self.edited:
            places.block(i)
        edited = sorted(i % places.count for i in self.edited)
        if edited[-1] > layer:
            raise ExpungeError(
                f"block {edited[-1]} of --edited is above block {layer}, whose output the loss reads, so it is not trained; "
                f"give blocks up to {layer}, or a higher --layer"
            )
        return edited


def published_layer(blocks: int) -> int:
    """Returns the index of the block at 7/32 of the depth; at least 2 (the third block) if there are three blocks."""
    return min(max(round(blocks * 7 / 32), 2), blocks - 1)


def _of(values: tuple[float, ...], part: int) -> tuple[float, ...]:
    """Returns the number of a domain, where a single one stands for all; None if there is none."""
    return values[part : part + 1] if len(values) > 1 else values


def _mean(values_BT: Tensor, counted_BT: Tensor) -> Tensor:
    """Computes the mean over the counted tokens of a row (0 for a row without any), then over rows."""
    return ((values_BT * counted_BT).sum(1) / counted_BT.sum(1).clamp(min=1)).mean()
