"""Latent adversarial training: forgets also where the hidden states of a forget prompt are pushed towards remembering.

    min over theta of  max over |d_t| <= radius |h_t| of L_forget(theta; h + d)  +  L_retain(theta)

h: the hidden states after the block at a fifth of the depth, at each position t of the prompt (of raw text: of the text). The
perturbation d is found for each row by projected gradient ascent on the method's own forget terms, from zero, in STEPS steps
with a gradient of length one at each position. Casper et al. 2024, arXiv 2403.05030; Sheshadri et al. 2024, arXiv 2407.15549.
Costs STEPS further forward and backward passes of the forget terms. The terms in metrics.jsonl are those under the perturbation.

Shape suffixes: B rows, T positions, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from expunge.data.encode import Tokens
from expunge.data.places import IGNORED
from expunge.errors import ExpungeError
from expunge.methods.training.base import Batch, Term, TrainingMethod
from expunge.models.blocks import blocks_of
from expunge.models.hooks import edit
from expunge.models.load import causal_model

STEPS = 4
"""Steps of the adversary; each moves by 2 * radius / STEPS."""


@dataclass
class _Perturbation:
    """What is added to the hidden states of one row set."""

    delta_BTD: Tensor
    limit_BT1: Tensor
    """The largest length at each position; 0 where nothing is added."""

    def raised(self, gradient_BTD: Tensor, share: float) -> "_Perturbation":
        """Returns it after one step of ascent by `share` of its largest length."""
        unit_BTD = gradient_BTD / gradient_BTD.norm(dim=-1, keepdim=True).clamp(min=1e-20)
        delta_BTD = self.delta_BTD.detach() + share * self.limit_BT1 * unit_BTD
        length_BT1 = delta_BTD.norm(dim=-1, keepdim=True).clamp(min=1e-20)
        return _Perturbation(delta_BTD * (self.limit_BT1 / length_BT1).clamp(max=1.0), self.limit_BT1)


@dataclass
class LatentAdversary:
    """Finds perturbations for micro-batches, and adds them."""

    model: nn.Module
    method: TrainingMethod
    radius: float
    _batch: Batch | None = None
    _set: str | None = None
    """The row set that is being computed."""
    _found: dict[str, _Perturbation] = field(default_factory=dict)

    @contextmanager
    def attached(self) -> Iterator["LatentAdversary"]:
        """Context manager in which the model adds the perturbations found by `attack`; none before the first call."""
        places = blocks_of(self.model)
        table = causal_model(self.model).get_input_embeddings()
        handle = table.register_forward_pre_hook(lambda _, inputs: self._see(inputs[0]))
        try:
            with edit(self.model, {places.hidden(places.count // 5): self._add}):
                yield self
        finally:
            handle.remove()

    def attack(self, batch: Batch, terms: Callable[[], Iterator[Term]]) -> None:
        """Finds the worst perturbation of the forget rows of a micro-batch; the terms computed next are under it.

        terms: evaluates the terms of the loss that are not over retain rows

        Raises ExpungeError if no such term depends on these hidden states.
        """
        self._batch, self._found = batch, {}
        for _ in range(STEPS):
            gradients: dict[str, Tensor] = {}
            for term in terms():
                names, deltas = list(self._found), [one.delta_BTD for one in self._found.values()]
                value = term.weight * term.value
                if not deltas or not value.requires_grad:
                    continue
                for name, found in zip(names, torch.autograd.grad(value, deltas, allow_unused=True), strict=True):
                    if found is not None:
                        gradients[name] = gradients[name] + found if name in gradients else found
            if not gradients:
                raise ExpungeError(
                    f"--latent-adversarial changes hidden states of forget prompts, and the loss of {self.method.method_name()} "
                    "does not depend on them; leave it out"
                )
            for name, gradient in gradients.items():
                self._found[name] = self._found[name].raised(gradient, 2 / STEPS)
            for one in self._found.values():
                one.delta_BTD.requires_grad_()
        for one in self._found.values():
            one.delta_BTD = one.delta_BTD.detach()

    def _see(self, input_ids_BT: Tensor) -> None:
        """Notes which forget rows, if any, the model is given."""
        sets = {} if self._batch is None else self._batch.sets
        forget = [name for name, rows in self.method.row_sets.items() if rows.prompts == "forget" and name in sets]
        self._set = next((name for name in forget if _same(sets[name].input_ids_BT, input_ids_BT)), None)

    def _add(self, hidden_BTD: Tensor) -> Tensor:
        if self._set is None or self._batch is None:
            return hidden_BTD
        if self._set not in self._found:
            if not torch.is_grad_enabled():
                return hidden_BTD
            where_BT1 = _attacked(self._batch.sets[self._set])[..., None]
            limit_BT1 = self.radius * hidden_BTD.detach().float().norm(dim=-1, keepdim=True) * where_BT1
            zeros_BTD = torch.zeros_like(hidden_BTD, dtype=torch.float32, requires_grad=True)
            self._found[self._set] = _Perturbation(zeros_BTD, limit_BT1)
        return hidden_BTD + self._found[self._set].delta_BTD.to(hidden_BTD.dtype)


def _attacked(tokens: Tokens) -> Tensor:
    """Marks the positions [B, T] of the prompts; of a row without a prompt, all its positions."""
    attended_BT = tokens.attention_mask_BT.bool()
    prompt_BT = attended_BT & (tokens.labels_BT == IGNORED)
    raw_B1 = prompt_BT.sum(dim=1, keepdim=True) <= 1
    return torch.where(raw_B1, attended_BT, prompt_BT)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())
