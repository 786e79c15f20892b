"""Approximates a dense difference by a product of two factors."""

import torch
from torch import Tensor

ROUNDS = 4
"""Rounds of subspace iteration: enough that the factors of a matrix without a gap in its spectrum are within 0.1 % of the
best."""
MORE = 8
"""Extra columns of the search space."""
EXACT = 512
"""Matrices up to this side length are decomposed exactly."""


def factorize(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Returns (A, B, residual) with B A the best approximation of `delta` (rows x columns) at `rank`: truncated SVD, float32.

    A is rank x columns, B is rows x rank, each with the root of the singular values. residual: norm of the error relative to the
    norm of delta. Large matrices use a randomized range finder with a fixed seed
    (Halko, Martinsson and Tropp 2011, algorithm 4.4).
    """
    rank = min(rank, *delta.shape)
    norm = float(torch.linalg.matrix_norm(delta))
    if norm == 0:
        return torch.zeros(rank, delta.shape[1]), torch.zeros(delta.shape[0], rank), 0.0
    if min(delta.shape) <= max(EXACT, 2 * (rank + MORE)):
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
    else:
        q = _range(delta, rank + MORE)
        u, s, v = torch.linalg.svd(q.T @ delta, full_matrices=False)
        u = q @ u
    root = s[:rank].sqrt()
    b, a = u[:, :rank] * root, root[:, None] * v[:rank]
    return a.contiguous(), b.contiguous(), float(torch.linalg.matrix_norm(delta - b @ a)) / norm


def _range(delta: Tensor, columns: int) -> Tensor:
    """Returns an orthonormal basis, rows x columns, of nearly the whole range of delta."""
    start = torch.randn(delta.shape[1], columns, generator=torch.Generator().manual_seed(0))
    q: Tensor = torch.linalg.qr(delta @ start).Q
    for _ in range(ROUNDS):
        q = torch.linalg.qr(delta @ torch.linalg.qr(delta.T @ q).Q).Q
    return q
