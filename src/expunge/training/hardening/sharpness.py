"""Sharpness-aware minimization: forgets at the worst weights nearby, so that a few relearning steps bring less back.

    min over theta of  max over |d| <= rho of L_forget(theta + d)  +  L_retain(theta);   d = rho g / |g|, g = grad L_forget(theta)

|.| is the norm over all trained weights together (with LoRA: over the factors of the adapters). Fan et al. 2025, arXiv 2502.05374
(published rho: 0.01); Foret et al. 2021, arXiv 2010.01412. Costs a second forward and backward pass of the forget terms, and a
copy of the trained weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Gradients = Sequence[Tensor | None]
"""The gradient of each trained weight; None where no term reached it."""


@contextmanager
def displaced(weights: Sequence[nn.Parameter], gradients: Gradients, rho: float) -> Iterator[None]:
    """Context manager in which the weights are at theta + rho g / |g|; afterwards they are the same to the bit."""
    found = [g.float().norm() for g in gradients if g is not None]
    norm = torch.stack(found).norm() if found else torch.zeros(())
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    weight.add_(gradient * (rho / norm.clamp(min=1e-12)).to(gradient.dtype))
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)
