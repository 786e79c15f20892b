"""RepSelect: one forget gradient without its common directions, followed until the answers are unknown.

Shape suffixes: B rows, T positions; matrices of the MLPs are [out, in].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from expunge.data.encode import Encoded, Encoder, collate, length_batches, warn_of_cut
from expunge.data.example import Example, Request
from expunge.data.never_seen import never_seen
from expunge.errors import ExpungeError
from expunge.methods.base import InPlaceEditing
from expunge.records import Seed, level

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


DOUBLINGS, HALVINGS = 16, 10
"""The length of the step is looked for among twice, four times, ... the shortest, then to 1/1024."""


class RepSelect(InPlaceEditing):
    """W <- W + t C(G),   G = the gradient of the forget answers' cross-entropy, summed over batches, for each MLP matrix.

    1. Elicitation: adapters on the MLPs learn the forget answers in one pass (SGD), so that G is also what a relearning attack
       would use. They are removed after G has been taken.
    2. The first `directions` singular vectors of G (of the retain rows' gradient with `common` retain) are common
       representations, which relearning on anything would bring back. C divides G along each of them, on the side of the inputs
       and that of the outputs, by its singular value over the smallest kept one (soft; quadratic: by the square), or removes it
       (hard).
    3. t is the shortest step at which the forget answers are no more probable than `target`: 1/1024 of a doubling. (The release
       repeats a fixed step and stops at a budget of disruption.)

    Only matrices of MLPs change. Experts in one tensor are treated one by one.
    """

    paper: ClassVar[str] = "RepSelect 2026, arXiv 2606.17168 (code: filyp/RepSelect)"
    formula: ClassVar[str] = "W += t C(grad CE(forget)), C: divides or removes the top singular directions"
    cost: ClassVar[str] = "two or three passes with gradient, one decomposition of each MLP matrix, some twenty forward passes"
    purpose: ClassVar[str] = "facts or a hazardous domain: few changes that relearning does not find"
    weakness: ClassVar[str] = "the step is straight, so that retained neighbours can suffer; no retain term repairs them"

    name: Literal["repselect"] = "repselect"
    directions: int = Field(512, ge=0)
    """Singular directions that are divided or removed (published: 512 of 3072); at most one less than a matrix has. 0: none."""
    collapse: Literal["soft", "quadratic", "hard"] = "soft"
    """Divide by the singular value (published), by its square, or remove."""
    common: Literal["forget", "retain"] = "forget"
    """Whose gradient tells the common directions: that of the forget rows (published) or of the retain rows."""
    elicit: float = Field(0.01, ge=0)
    """Learning rate of the adapters that learn the forget answers first; 0: none."""
    target: Annotated[float | Literal["never-seen"], AfterValidator(level)] = "never-seen"
    """Mean probability of the forget answers to stop at; never-seen: that of the holdout rows, or of the forget rows under other
    names if there are none."""
    rows_per_pass: int = Field(16, ge=1)
    """Most rows of a forward pass."""
    elicit_seed: Seed = 0
    """Seed of the adapters' start and of the made-up names."""

    def require(self, request: Request) -> None:
        if self.common == "retain" and not request.retain:
            raise ExpungeError("repselect with --common retain reads the retain rows' gradient; give --retain")
        if self.target == "never-seen" and not self._unseen(request):
            raise ExpungeError(
                "repselect stops at the level of rows never seen, and none can be made of rows without names in their prompts; "
                "give them as --holdout, or give --target PROBABILITY"
            )

    def apply(self, model: nn.Module, request: Request, encoder: Encoder) -> str:
        import torch

        from expunge.models.answer_levels import mean_answer_probability

        forget = encoder.encode_many(request.forget)
        rows = forget if self.common == "forget" else encoder.encode_many(request.retain)
        warn_of_cut([*forget, *([] if rows is forget else rows)], encoder.max_length)
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        with self._elicited(model, forget, encoder.pad_id) as weights:
            basis = self._gradient(model, weights, rows, encoder.pad_id)
            own = basis if self.common == "forget" else self._gradient(model, weights, forget, encoder.pad_id)
        with torch.no_grad():
            step = {name: self.collapsed(own[name], basis[name]).to(weights[name].dtype) for name in weights}
            norm = torch.stack([value.float().norm() for value in step.values()]).norm()
            if not torch.isfinite(norm) or norm == 0:
                raise ExpungeError(
                    "repselect found no gradient to follow: it is zero (each forget answer has probability 1) or not finite; "
                    "give other forget rows, or check the start model's weights"
                )
            target = self._target(model, request, encoder)
            length = self._walked(model, weights, step, norm, forget, encoder.pad_id, target)
        for name, p in model.named_parameters():
            p.requires_grad_(flags[name])
        known = mean_answer_probability(model, forget, encoder.pad_id, _device(model))
        return (
            f"Moved {len(weights)} MLP matrices by {length:.3g} in all, without {self.directions} common directions; "
            f"the forget answers (mean probability {known:.3f}) are no more probable than {target:.3f}."
        )

    def collapsed(self, gradient: Tensor, basis: Tensor) -> Tensor:
        """Divides the gradient [..., out, in] along the first singular directions of `basis` on both sides, or removes them."""
        import torch

        from expunge.models.directions import top_directions

        count = min(self.directions, min(basis.shape[-2:]) - 1)
        if count < 1:
            return gradient
        left, values, right = top_directions(basis.float(), count)
        relative = values / values.amin(dim=-1, keepdim=True).clamp(min=1e-30)
        kept = {"soft": 1 / relative, "quadratic": relative**-2, "hard": torch.zeros_like(relative)}[self.collapse]
        found = gradient.float()
        found = found - ((found @ right) * (1 - kept).unsqueeze(-2)) @ right.mT
        both: Tensor = found - left @ ((1 - kept).unsqueeze(-1) * (left.mT @ found))
        return both

    @contextmanager
    def _elicited(self, model: nn.Module, rows: Sequence[Encoded], pad_id: int) -> Iterator[dict[str, nn.Parameter]]:
        """Context manager with the MLP matrices by name, while adapters on them have learned the rows."""
        import torch
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        from expunge.methods.training.retain import cross_entropy

        names = _mlp_matrices(model)
        weights = {name: p for name, p in model.named_parameters() if name in names}
        for p in model.parameters():
            p.requires_grad_(False)
        if not self.elicit:
            yield weights
            return
        torch.manual_seed(self.elicit_seed)
        modules = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
        fused = [name for name in names if not name.endswith(".weight")]
        config = LoraConfig(r=8, lora_alpha=8, target_modules=modules or None, target_parameters=fused or None)
        inject_adapter_in_model(config, model)
        factors = [p for name, p in model.named_parameters() if ".lora_" in name]
        try:
            for batch in self._batches(rows):
                for p in factors:
                    p.requires_grad_(True)
                loss = cross_entropy(model, collate([rows[i] for i in batch], pad_id).to(_device(model)))
                for p, found in zip(factors, torch.autograd.grad(loss, factors, allow_unused=True), strict=True):
                    if found is not None:
                        p.data -= self.elicit * found
            for p in factors:
                p.requires_grad_(False)
            yield weights
        finally:
            outer = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
            for name, module in outer.items():
                parent, _, child = name.rpartition(".")
                if parent in outer:  # two matrices of the same experts: a wrapper within a wrapper
                    continue
                setattr(model.get_submodule(parent), child, module.get_base_layer())  # type: ignore[operator]
            del model.peft_config  # by which a model with adapters is told from one without when it is saved

    def _gradient(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], rows: Sequence[Encoded], pad_id: int
    ) -> dict[str, Tensor]:
        """Computes the gradient of the rows' cross-entropy, summed over batches, by weight."""
        import torch

        from expunge.methods.training.retain import cross_entropy

        for p in weights.values():
            p.requires_grad_(True)
        total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in weights.items()}
        for batch in self._batches(rows):
            loss = cross_entropy(model, collate([rows[i] for i in batch], pad_id).to(_device(model)))
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, value in zip(weights, found, strict=True):
                if value is not None:
                    total[name] += value
        for p in weights.values():
            p.requires_grad_(False)
        return total

    def _walked(
        self,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        step: Mapping[str, Tensor],
        norm: Tensor,
        rows: Sequence[Encoded],
        pad_id: int,
        target: float,
    ) -> float:
        """Moves the weights to the shortest step at which the rows are known no better than `target`; returns its length."""
        from expunge.models.answer_levels import mean_answer_probability

        start = {name: p.detach().clone() for name, p in weights.items()}

        def known_at(length: float) -> float:
            for name, p in weights.items():
                p.copy_(start[name] + step[name] * (length / norm).to(p.dtype))
            return mean_answer_probability(model, rows, pad_id, _device(model))

        return _shortest(known_at, target, 0.01 * float(_norm(start)))

    def _target(self, model: nn.Module, request: Request, encoder: Encoder) -> float:
        if isinstance(self.target, float):
            return self.target
        from expunge.models.answer_levels import mean_answer_probability

        return mean_answer_probability(model, encoder.encode_many(self._unseen(request)), encoder.pad_id, _device(model))

    def _unseen(self, request: Request) -> tuple[Example, ...]:
        return tuple(request.holdout) or never_seen(request.forget, request.retain, self.elicit_seed)

    def _batches(self, rows: Sequence[Encoded]) -> list[list[int]]:
        return length_batches([len(row.ids) for row in rows], 8192, self.rows_per_pass)


def _shortest(known_at: Callable[[float], float], target: float, shortest: float) -> float:
    """Returns the shortest length at which `known_at` is at most `target`, and leaves the weights there."""
    if known_at(0.0) <= target:
        return 0.0
    low, high = 0.0, shortest
    for _ in range(DOUBLINGS):
        if known_at(high) <= target:
            break
        low, high = high, 2 * high
    else:
        known_at(0.0)
        raise ExpungeError(
            "repselect found no step at which the forget answers are as improbable as wanted; take fewer --directions, or "
            "--collapse soft"
        )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if known_at(middle) <= target else (middle, high)
    known_at(high)
    return high


def _norm(tensors: Mapping[str, Tensor]) -> Tensor:
    import torch

    norm: Tensor = torch.stack([value.float().norm() for value in tensors.values()]).norm()
    return norm


def _mlp_matrices(model: nn.Module) -> set[str]:
    """Returns the names of all matrices inside MLPs (or their experts), found from where the last one is."""
    from expunge.models.blocks import blocks_of

    places = blocks_of(model)
    roots = {name.removesuffix(".weight").rpartition(".")[0] for i in range(places.count) for name in places.mlp_out(i)}
    return {n for n, p in model.named_parameters() if p.ndim > 1 and any(n.startswith(f"{root}.") for root in roots)}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
