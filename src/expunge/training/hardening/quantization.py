"""Quantization-aware training: forgets at the rounded weights as well, so that rounding does not bring back what was forgotten.

    gradient = (grad L(theta) + grad L(Q(theta))) / 2

Q rounds the matrix of every linear layer but the head to a format (`models/rounding.py`); its gradient is passed through
unchanged (straight-through: Bengio et al. 2013, arXiv 1308.3432; Jacob et al. 2018, arXiv 1712.05877). That rounding to 4 bits
restores up to 83 % of what was unlearned: Zhang et al. 2024, arXiv 2410.16454. The protection is for the one format; attack the
artifact with others too. With adapters the merged weights are rounded, as somebody who serves them would. Costs a second forward
and backward pass, and a copy of the matrices.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from expunge.errors import ExpungeError
from expunge.models.load import causal_model
from expunge.models.rounding import ROUNDINGS, linear_weights, rounded_matrix


@contextmanager
def rounded(model: nn.Module, format: str) -> Iterator[None]:
    """Context manager in which the model computes with rounded weights; afterwards they are the same to the bit.

    With an adapter whose change is D, the base weight is Q(W + D) - D meanwhile: the layer then computes with Q(W + D), and the
    gradient of the factors is that of D.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for weight, transposed, change in _matrices(model):
                kept.append((weight, weight.detach().clone()))
                merged = weight.float() if change is None else weight.float() + change
                found = rounded_matrix(merged, ROUNDINGS[format], transposed=transposed)
                weight.copy_(found if change is None else found - change)
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)


def _matrices(model: nn.Module) -> Iterator[tuple[Tensor, bool, Tensor | None]]:
    """Returns each matrix, whether it is [in, out], and the change that its adapter makes (float32)."""
    adapted = {name: module for name, module in causal_model(model).named_modules() if isinstance(module, LoraLayer)}
    for name, module in adapted.items():
        if getattr(module, "parameter_name", "weight") != "weight":
            raise ExpungeError(
                f"--quantization-aware rounds linear layers, and the adapter on {name} is on another kind of matrix; leave it "
                "out by --parameters"
            )
    changes = {id(m.get_base_layer().weight): m.get_delta_weight("default").float() for m in adapted.values()}
    own = {id(p) for m in adapted.values() for n, p in m.named_parameters() if n.startswith("lora_")}
    for weight, transposed in linear_weights(causal_model(model)):
        if id(weight) not in own:
            yield weight, transposed, changes.get(id(weight))
