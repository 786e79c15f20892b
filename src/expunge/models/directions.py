"""Finds the first singular directions of gradients."""

import torch
from torch import Tensor

EXACT = 1024
"""Matrices whose smaller side is up to this are decomposed exactly."""
MORE = 8
"""Directions that the partial decomposition computes beyond those asked for, so that these are exact enough."""


def top_directions(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the first `count` left singular vectors [..., M, count], singular values [..., count] and right singular vectors
    [..., N, count] of a float32 matrix [..., M, N]. The same on every process and in every run."""
    smaller = min(matrix.shape[-2:])
    if smaller <= EXACT:
        left, values, right_T = torch.linalg.svd(matrix, full_matrices=False)
        right = right_T.mT
    else:
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(0)  # the start of the partial decomposition is random
            left, values, right = torch.svd_lowrank(matrix, q=min(smaller, count + MORE), niter=4)
    return left[..., :count], values[..., :count], right[..., :count]
