"""Removes the top directions of forget gradients: common representations, which retained knowledge and relearning share.

    G <- G - U_k U_k^T G          for each trained matrix; U_k: the k first left singular vectors of G

Since G = U S V^T, this equals removing the first k right singular vectors, and what is left are the smaller singular values.
Weights without two dimensions (norms, biases) have no directions and get no forget gradient. RepSelect, arXiv 2606.17168 (`hard`
collapse, of each step's gradient), and MCU, arXiv 2605.11685. AdamW scales what is left by element, so that a step is not exactly
inside the remaining directions. For the same reason no rounding error may be left in it: AdamW would make whole steps of it,
in the embeddings of all tokens that no forget row holds, for example.

Costs one partial singular value decomposition of each matrix a step.
"""

import torch
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.models.directions import top_directions

NOISE = 64
"""Rounding errors of a difference, in units of the last place of what it was taken from."""


def without_top_directions(gradient: Tensor, k: int, name: str) -> Tensor:
    """Returns G - U_k U_k^T G; zeros for a gradient without two dimensions. Experts in one tensor [experts, out, in] are
    treated one by one.

    Raises ExpungeError if the matrix has no more than k directions: nothing would be left.
    """
    if gradient.ndim < 2:
        return torch.zeros_like(gradient)
    smaller = min(gradient.shape[-2:])
    if smaller <= k:
        raise ExpungeError(
            f"--remove-top-directions {k} would leave nothing of the gradient of {name}, which has {smaller} directions; give a "
            "smaller number, leave this weight out by --parameters, or with --lora raise --lora-rank"
        )
    matrix = gradient.float()
    left, _, _ = top_directions(matrix, k)
    kept: Tensor = matrix - left @ (left.mT @ matrix)
    return _without_noise(kept, matrix).to(gradient.dtype)


def _without_noise(kept: Tensor, matrix: Tensor) -> Tensor:
    """Zeroes rows and columns of which nothing but rounding errors is left, and those that were zero before."""
    eps, size = torch.finfo(matrix.dtype).eps, torch.linalg.matrix_norm(matrix, keepdim=True)
    for dim in (-1, -2):
        had = matrix.norm(dim=dim, keepdim=True)
        gone = (kept.norm(dim=dim, keepdim=True) <= NOISE * eps * had) | (had <= eps * size)
        kept = kept.masked_fill(gone, 0.0)
    return kept
