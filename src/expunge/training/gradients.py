"""Computes the gradient of one step: all terms of the loss at the current weights, or as the wrappers of `hardening/` ask for.

plain      sum over micro-batches and terms of share * weight * value
hardened   forget terms and the others have separate sums, since wrappers change the former; with SAM the former are computed
           again at displaced weights, then their top directions are removed, then both are added
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.methods.training.base import Batch, Term, TrainingMethod
from expunge.training.batches import MicroBatch
from expunge.training.hardening import wrappers
from expunge.training.hardening.latent_adversary import LatentAdversary
from expunge.training.hardening.quantization import rounded
from expunge.training.hardening.sharpness import displaced
from expunge.training.hardening.top_directions import without_top_directions
from expunge.training.settings import Training

Side = Literal["forget", "retain"]
"""The terms over retain rows are `retain`, all others `forget`."""
Sums = dict[Side, list[Tensor | None]]
"""Side -> the gradient of each trained weight; None where no term reached it."""


@dataclass
class StepWork:
    """The inputs of the gradient of one step."""

    method: TrainingMethod
    model: nn.Module
    trained: Mapping[str, nn.Parameter]
    batches: Callable[[], Iterator[MicroBatch]]
    """Returns the micro-batches of this process, the same at each call."""
    autocast: Callable[[], AbstractContextManager[None]]
    seed: int
    """Seed of dropout; each pass begins with it."""
    active: float = 1.0
    """Factor of the forget terms: the share of the forget rows of the step that do not rest. With 0 only the terms over retain
    rows are backpropagated; the values of the others are still recorded."""
    forget_terms: int | None = field(default=None, init=False)
    """Number of forget terms, known after the first pass: later ones end with the last of them."""

    @property
    def weights(self) -> list[nn.Parameter]:
        return list(self.trained.values())

    def only_forget(self, batch: Batch) -> Iterator[Term]:
        """Yields the forget terms; after the first full pass, nothing beyond the last of them is computed."""
        terms = (term for term in self.method.terms(self.model, batch) if side(term) == "forget")
        return islice(terms, self.forget_terms)


def side(term: Term) -> Side:
    return "retain" if term.rows == "retain" else "forget"


def step_gradient(work: StepWork, training: Training, *, average: bool) -> dict[str, Tensor]:
    """Leaves the gradient in `.grad` of the trained weights, and returns the values of the loss and its terms by name.

    average  over processes that each have a share of the rows
    """
    totals: dict[str, Tensor] = {}
    if not wrappers(training):
        torch.manual_seed(work.seed)
        for micro in work.batches():
            with work.autocast():
                _backward(work, micro, totals)
        if average:
            for weight in work.weights:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            _average([weight.grad for weight in work.weights])
        return totals
    sums = _sums(work, training, totals, average=average)
    if training.sharpness_aware is not None and any(g is not None for g in sums["forget"]):
        with displaced(work.weights, sums["forget"], training.sharpness_aware):
            sums["forget"] = _sums(work, training, None, average=average)["forget"]
    if k := training.remove_top_directions:
        named = zip(work.trained, sums["forget"], strict=True)
        sums["forget"] = [None if g is None else without_top_directions(g, k, name) for name, g in named]
    for weight, forget, retain in zip(work.weights, sums["forget"], sums["retain"], strict=True):
        weight.grad = forget if retain is None else retain if forget is None else forget + retain
    return totals


def _sums(work: StepWork, training: Training, totals: dict[str, Tensor] | None, *, average: bool) -> Sums:
    """Computes the gradients of both sides at the current weights, and rounded ones if asked for; of the forget side only
    without `totals`, to which the values of the terms are added."""
    sums: Sums = {"forget": [None] * len(work.trained), "retain": [None] * len(work.trained)}
    points: list[AbstractContextManager[None]] = [nullcontext()]
    if training.quantization_aware is not None:
        points.append(rounded(work.model, training.quantization_aware))
    for number, point in enumerate(points):
        torch.manual_seed(work.seed)
        with point, ExitStack() as stack:
            adversary = None
            if training.latent_adversarial and work.active > 0:
                adversary = stack.enter_context(LatentAdversary(work.model, work.method, training.latent_radius).attached())
            for micro in work.batches():
                with work.autocast():
                    if adversary is not None:
                        adversary.attack(micro.batch, partial(work.only_forget, micro.batch))
                    recorded = totals if number == 0 else None
                    _backward(work, micro, recorded, sums, 1 / len(points), only_forget=totals is None)
    if average:
        sums = {one: [torch.zeros_like(w) if g is None else g for w, g in zip(work.weights, found, strict=True)]
                for one, found in sums.items()}  # fmt: skip
        _average([g for found in sums.values() for g in found if g is not None])
    return sums


def _backward(
    work: StepWork,
    micro: MicroBatch,
    totals: dict[str, Tensor] | None,
    sums: Sums | None = None,
    scale: float = 1.0,
    *,
    only_forget: bool = False,
) -> None:
    """Backpropagates the terms one after the other, so that only one graph is in memory, and adds their values to `totals`.

    sums  where the gradients are added, by side; `.grad` of the weights if not given
    """
    terms = work.only_forget(micro.batch) if only_forget else work.method.terms(work.model, micro.batch)
    forget = 0
    for term in terms:
        forget += side(term) == "forget"
        share = micro.shares[term.rows]
        factor = 1.0 if side(term) == "retain" else work.active
        weighted = term.weight * term.value * factor
        if factor > 0:
            _into(work.weights, sums[side(term)] if sums is not None else None, scale * share * weighted)
        if totals is None:
            continue
        for name, value in {"loss": weighted.detach(), term.name: term.value.detach(), **term.record}.items():
            found = share * value.float()
            totals[name] = totals[name] + found if name in totals else found
    work.forget_terms = forget


def _into(weights: Sequence[nn.Parameter], sums: list[Tensor | None] | None, value: Tensor) -> None:
    """Backpropagates `value` into `sums`, or into `.grad` of the weights."""
    if sums is None:
        value.backward()  # type: ignore[no-untyped-call]
        return
    for weight, before in zip(weights, sums, strict=True):
        weight.grad = before
    value.backward()  # type: ignore[no-untyped-call]
    for i, weight in enumerate(weights):
        sums[i], weight.grad = weight.grad, None


def _average(gradients: Sequence[Tensor | None]) -> None:
    """Averages each gradient over the processes; a weight that no term reached on this process counts as zero."""
    pending = []
    for gradient in gradients:
        assert gradient is not None
        gradient /= torch.distributed.get_world_size()
        pending.append(torch.distributed.all_reduce(gradient, async_op=True))
    for work in pending:
        work.wait()
