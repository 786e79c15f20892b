"""Key Space Detection: detects a query of the forgotten skill by the key vector of its last prompt token, and refuses it.

Shape suffixes: B rows, T positions, F dimensions of a key, L watched layers, N vectors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from expunge.data.encode import Encoder
from expunge.data.example import Example, Request
from expunge.errors import ExpungeError
from expunge.methods.base import NOTHING, GuardingMethod, Resources, State
from expunge.methods.guarding.key_boxes import KeyBox, Sides, calibrate, samuelson, share_inside
from expunge.models.token_policy import TokenPolicy
from expunge.records import Seed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from expunge.guarding.forward_pass import Counts, ForwardPass
    from expunge.models.blocks import Blocks
    from expunge.models.hooks import Site
    from expunge.models.spans import Chosen, Observer, Span


Vote = Literal["any", "all"]


class KeySpaceDetection(GuardingMethod):
    """The keys (inputs of the down projection) of a skill's queries lie together, so a box around them tells such a query:

        closed  iff  z(v) = max_d |v_d - m_d| / s_d <= r,      v the key of the prompt's last token, m and s of the forget prompts

    (their mean and standard deviation, or the middle and half of their range), in the watched layers. A closed query is answered
    with the text `abstention`, without decoding; all others are answered by the unchanged model. Decisions are made per row.

    The radius r is `radius`, or `alpha` times k, the least radius that holds all fitted prompts (as published), or it is
    calibrated on prompts that the box was not fitted on (the holdout set, or a share of the forget set) and on the retain
    prompts: r is as large as a margin around the forget prompts and `false_abstain`, the allowed share of closed retain
    prompts, permit.

    Scoring agrees with generation: labels show where the prompt ends, and from there a closed row's logits spell the abstention,
    so that any other answer has practically no probability. In a plain forward pass the end of the prompt is unknown; then each
    position is judged as if the prompt ended there, and a row is closed from the first position inside a box. This may close a
    row that generation would not.
    """

    paper: ClassVar[str] = "Li et al. 2025, arXiv 2503.21730 (Key Space Detection)"
    formula: ClassVar[str] = "abstain iff max_d |v_d - m_d| / s_d <= r at the last prompt token"
    cost: ClassVar[str] = (
        "one forward pass over the prompts to fit; a comparison per prompt to run; a closed prompt costs one prefill"
    )
    purpose: ClassVar[str] = "a kind of query, at run time: refuses what falls into its box"
    weakness: ClassVar[str] = "a guard; paraphrases may fall outside"

    name: Literal["key_space"] = "key_space"
    layers: tuple[int, ...] = (-1,)
    """Watched layers, counted from 0; -1 is the last (published)."""
    vote: Vote = "any"
    """With several layers: close a query if any box holds it (published), or only if all do."""
    check: Literal["prompt", "all_steps"] = "prompt"
    """prompt: only the prefill decides. all_steps: every generated token is judged too, and closes the whole answer
    (published)."""
    action: Literal["abstain", "steer"] = "abstain"
    """abstain: answer with `abstention`. steer: continue with the query's key replaced by the mean retain key, in every watched
    layer."""
    abstention: str = "I cannot answer that."
    """The answer to a closed query."""
    query: Literal["last", "mean"] = "last"
    """Vector that represents a query: the key of its last token (published), or the mean key of all of its tokens."""
    sides: Sides = "deviation"
    """Unit of each side of the box: the standard deviation of the fitted keys (published), or half of their range."""
    tokens: TokenPolicy = "last_prompt"
    """Tokens that the boxes are fitted on: last_prompt, all (published for languages), or generated."""
    radius: float | None = Field(None, gt=0)
    """Radius in standard deviations (with sides range: in half ranges), the same in every layer."""
    alpha: float | None = Field(None, gt=0)
    """Radius as a multiple of k (published: 2 for GSM8K, 1.4 for MBPP, 0.06 for languages)."""
    false_abstain: float = Field(0.01, ge=0, lt=1)
    """For calibration: the share of retain prompts that may be closed."""
    least_detected: float = Field(0.0, ge=0, le=1)
    """For calibration: the share of held-out forget prompts that must be closed, even if more retain prompts are closed for it.
"""
    held_out: float = Field(0.25, gt=0, lt=1)
    """For calibration without a holdout set: the share of the forget prompts that the box is not fitted on."""
    split_seed: Seed = 0
    """Seed of the choice of held-out prompts."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.radius is not None and self.alpha is not None:
            raise ValueError("radius and alpha both say how wide the box is; give one of them")
        if not self.layers:
            raise ValueError("give at least one layer to watch")
        if self.query == "mean" and (self.check == "all_steps" or self.tokens != "last_prompt" or self.action == "steer"):
            raise ValueError(
                "the mean key of a query is there for whole prompts only: check prompt, tokens last_prompt, action abstain"
            )
        if self.action == "steer" and self.vote == "all" and len(self.layers) > 1:
            raise ValueError("steering acts in each layer before the later ones are seen, so it goes with vote any")
        return self

    @property
    def calibrated(self) -> bool:
        return self.radius is None and self.alpha is None

    def require(self, request: Request) -> None:
        if not request.retain and (self.calibrated or self.action == "steer"):
            raise ExpungeError(
                "key_space calibrates its radius, and steers, by retain prompts; give --retain (or --radius or --alpha)"
            )

    def fit(self, model: nn.Module, request: Request, encoder: Encoder, resources: Resources = NOTHING) -> State:
        import torch

        from expunge.guarding.abstain import Abstention
        from expunge.models.activations import probe
        from expunge.models.blocks import blocks_of

        Abstention.of(encoder, self.abstention)
        layers = _layers(self.layers, blocks_of(model))
        forget, holdout, retain = (self._texts(rows, encoder) for rows in (request.forget, request.holdout, request.retain))
        fitted, measured = self._split(forget, holdout)
        mean = self.query == "mean"
        moments = probe(model, fitted, encoder.pad_id, roles=("key",), pooled=mean).moments["key"]
        boxes = {layer: KeyBox.of_moments(moments, layer, self.sides) for layer in layers}
        for layer, box in boxes.items():
            if box.is_a_point():
                raise ExpungeError(
                    f"the {moments.n} forget prompts that the box is fitted on are all the same to layer {layer}, so that the "
                    "box has no size; give prompts that differ, as the model's tokenizer reads them"
                )
        unit_L = torch.tensor([self.radius or box.k for box in boxes.values()], dtype=torch.float64)
        radius, scores = self.alpha or 1.0, {}
        if retain:
            for name, texts in (("forget", measured), ("retain", retain)):
                scores[name] = score(distances(model, texts, encoder.pad_id, list(boxes.items()), pooled=mean), unit_L, self.vote)
            if self.calibrated:
                radius = calibrate(scores["forget"], scores["retain"], self.false_abstain, self.least_detected)
        state = {
            "layer": torch.tensor(layers),
            "centre": torch.stack([box.centre_F for box in boxes.values()]),
            "unit": torch.stack([box.unit_F for box in boxes.values()]),
            "k": torch.tensor([box.k for box in boxes.values()], dtype=torch.float64),
            "radius": unit_L * radius,
            "count": torch.tensor(moments.n),
            **{f"calibration.{name}": score_N / radius for name, score_N in scores.items()},
        }
        if self.action == "steer":
            state["steer"] = probe(model, retain, encoder.pad_id, roles=("key",)).moments["key"].mean_LF[list(layers)].float()
        if self.sides == "deviation":
            _warn_of_small_probe(state)
        return State(state)

    def _texts(self, examples: Sequence[Example], encoder: Encoder) -> list[Span]:
        from expunge.models.spans import Span, spans

        found = spans(examples, encoder, self.tokens)
        return found if self.query == "last" else [Span(text.ids, 0, text.stop) for text in found]

    def _split(self, forget: list[Span], holdout: list[Span]) -> tuple[list[Span], list[Span]]:
        """Returns the spans to fit the boxes on, and the spans to measure."""
        import torch

        if holdout:
            return forget, holdout
        if not self.calibrated:
            return forget, forget
        count = max(1, round(self.held_out * len(forget)))
        if len(forget) - count < 2:
            raise ExpungeError(f"{len(forget)} forget prompts are too few to fit a box and to calibrate it; give more of them")
        order = torch.randperm(len(forget), generator=torch.Generator().manual_seed(self.split_seed)).tolist()
        return [forget[i] for i in sorted(order[count:])], [forget[i] for i in sorted(order[:count])]

    @contextmanager
    def attach(self, model: nn.Module, state: State, encoder: Encoder) -> Iterator[Counts]:
        from expunge.guarding.abstain import Abstention, abstaining
        from expunge.guarding.session import open_session
        from expunge.models.blocks import blocks_of
        from expunge.models.hooks import edit

        places = blocks_of(model)
        layers = _layers(state["layer"].tolist(), places)
        with ExitStack() as stack:
            session = stack.enter_context(open_session(model))
            gate = BoxGate(self, state)
            if self.action == "abstain":
                reply = stack.enter_context(abstaining(model, session, Abstention.of(encoder, self.abstention), self.check))

            def watch(n: int, values_BTF: Tensor) -> Tensor:
                here = session.current
                inside_BT = gate.inside(n, here, values_BTF)
                if self.action == "steer":
                    if n == 0 and inside_BT is not None:
                        gate.counts.decided += here.rows
                        gate.counts.acted += int(inside_BT.any(dim=1).sum())
                    return values_BTF if inside_BT is None else gate.steer(n, inside_BT, values_BTF)
                before_BT = here.storage.get(gate)
                if n > 0 and before_BT is not None and inside_BT is not None:
                    inside_BT = inside_BT.to(before_BT.device)
                    inside_BT = before_BT | inside_BT if self.vote == "any" else before_BT & inside_BT
                here.storage[gate] = inside_BT
                if n == len(layers) - 1 and inside_BT is not None:
                    reply.decide(here, inside_BT)
                return values_BTF

            stack.enter_context(edit(model, {places.key(layer): partial(watch, n) for n, layer in enumerate(layers)}))
            yield reply.counts if self.action == "abstain" else gate.counts

    def summary(self, state: State) -> str:
        text = "Watches layer{} {}: {} queries fitted, radius {} {} (k = {}).".format(
            "s" if len(state["layer"]) > 1 else "",
            ", ".join(str(int(layer)) for layer in state["layer"]),
            int(state["count"]),
            ", ".join(f"{float(r):.3g}" for r in state["radius"]),
            "deviations" if self.sides == "deviation" else "half ranges",
            ", ".join(f"{float(k):.3g}" for k in state["k"]),
        )
        if "calibration.retain" in state:
            detected, closed = (share_inside(state[f"calibration.{name}"], 1.0) for name in ("forget", "retain"))
            text += f" Closes {detected:.1%} of the measured forget queries and {closed:.1%} of the retain queries."
        return text


class BoxGate:
    """The boxes of the watched layers, and the positions at which a forward pass is judged."""

    def __init__(self, method: KeySpaceDetection, state: State) -> None:
        from expunge.guarding.forward_pass import Counts

        self.all_steps, self.mean = method.check == "all_steps", method.query == "mean"
        self.radius_L = state["radius"].tolist()
        self.boxes = [KeyBox(centre_F, unit_F, 0.0, 0) for centre_F, unit_F in zip(state["centre"], state["unit"], strict=True)]
        self.steer_LF = state.get("steer")
        self.counts = Counts()
        """Counts of steering, in the first watched layer."""

    def inside(self, n: int, here: ForwardPass, values_BTF: Tensor) -> Tensor | None:
        """Returns which positions are judged and lie inside the box of the n-th watched layer, [B, T]; None if none is judged."""
        import torch

        mask_BT = here.mask_BT.to(values_BTF.device)
        if here.prompt_end_B is None:
            return self._inside(n, _running_means(values_BTF, mask_BT) if self.mean else values_BTF) & mask_BT
        if not self.all_steps and not here.has_prompt_end:
            return None
        if self.all_steps:
            return self._inside(n, values_BTF) & here.predicting_BT.to(values_BTF.device)
        end_B = here.prompt_end_B.to(values_BTF.device)
        columns_T = torch.arange(here.width, device=values_BTF.device)
        here_B = (end_B >= 0) & (end_B < here.width)
        if self.mean:
            asked_BT = (mask_BT & (columns_T <= end_B[:, None])).float()
            key_BF = torch.stack([w @ x.float() for w, x in zip(asked_BT, values_BTF, strict=True)]) / asked_BT.sum(
                1, keepdim=True
            )
        else:
            key_BF = values_BTF[torch.arange(here.rows, device=values_BTF.device), end_B.clamp(0, here.width - 1)]
        return (self._inside(n, key_BF) & here_B)[:, None] & (columns_T == end_B[:, None])

    def steer(self, n: int, inside_BT: Tensor, values_BTF: Tensor) -> Tensor:
        import torch

        assert self.steer_LF is not None
        return torch.where(inside_BT[..., None], self.steer_LF[n].to(values_BTF), values_BTF)

    def _inside(self, n: int, values: Tensor) -> Tensor:
        import torch

        from expunge.models.spans import tiles

        box = self.boxes[n] = self.boxes[n].to(values.device)
        flat_NF = values.reshape(-1, values.shape[-1])
        parts = [box.distance(flat_NF[part]) for part in tiles(len(flat_NF), flat_NF.shape[1], flat_NF.device)]
        return torch.le(torch.cat(parts), self.radius_L[n]).view(values.shape[:-1])


def distances(
    model: nn.Module, texts: Sequence[Span], pad_id: int, boxes: Sequence[tuple[int, KeyBox]], *, pooled: bool = False
) -> Tensor:
    """Computes z of every chosen token in every box (given with its layer), float32 [boxes, N], tokens in order, in one pass.
    pooled: of the mean over each text's tokens."""
    import torch

    from expunge.models.blocks import blocks_of
    from expunge.models.spans import visit

    places = blocks_of(model)
    lengths = torch.tensor([1 if pooled else text.stop - text.start for text in texts])
    first = lengths.cumsum(0) - lengths - torch.tensor([text.stop - 1 if pooled else text.start for text in texts])
    found = torch.zeros(len(boxes), int(lengths.sum()))

    def observers(chosen: Chosen) -> dict[Site, Observer]:
        index_N = first[chosen.span_N] + chosen.position_N

        def see(layer: int, values_NF: Tensor, part: slice) -> None:
            for i, (box_layer, box) in enumerate(boxes):
                if box_layer == layer:
                    found[i, index_N[part]] = box.distance(values_NF).cpu()

        return {places.key(layer): partial(see, layer) for layer in {layer for layer, _ in boxes}}

    visit(model, texts, pad_id, observers, pooled=pooled)
    return found


def _running_means(values_BTF: Tensor, mask_BT: Tensor) -> Tensor:
    """Computes at each position the mean over the row's tokens up to it."""
    weight_BT1 = mask_BT.float()[..., None]
    return (values_BTF.float() * weight_BT1).cumsum(dim=1) / weight_BT1.cumsum(dim=1).clamp(min=1)


def score(distances_LN: Tensor, unit_L: Tensor, vote: Vote) -> Tensor:
    """Combines the layers into one number per query: closed at radii a * unit_l <=> score <= a."""
    relative_LN = distances_LN / unit_L[:, None].float()
    return relative_LN.amin(dim=0) if vote == "any" else relative_LN.amax(dim=0)


def _layers(wanted: Sequence[int], places: Blocks) -> tuple[int, ...]:
    for layer in wanted:
        places.block(layer)  # the error names the layers that there are
    return tuple(sorted({layer % places.count for layer in wanted}))


def _warn_of_small_probe(state: Mapping[str, Tensor]) -> None:
    n, radius = int(state["count"]), float(state["radius"].max())
    if radius > samuelson(n):
        warnings.warn(
            f"the radius of {radius:.3g} deviations is beyond {samuelson(n):.3g}, the farthest that any of the {n} fitted "
            f"vectors can lie from their mean, so no fitted prompt supports it; fit on {math.ceil(radius**2) + 2} or more",
            stacklevel=2,
        )
