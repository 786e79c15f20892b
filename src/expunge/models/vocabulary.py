"""Computes sums over the vocabulary in chunks of rows, without a float32 copy of the logits or of their log-softmax.

Shape suffixes: N labelled tokens, V vocabulary, n rows of one chunk.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**19
"""Number of logits converted to float32 at a time: 2 MiB, which fit into a CPU's cache."""
GPU_CHUNK_ELEMENTS = 2**24
"""The same on a GPU, where larger kernels are more efficient: 64 MiB."""


def _row_chunks(logits_NV: Tensor) -> list[slice]:
    elements = CHUNK_ELEMENTS if logits_NV.device.type == "cpu" else GPU_CHUNK_ELEMENTS
    rows = max(1, elements // logits_NV.shape[1])
    return [slice(start, start + rows) for start in range(0, logits_NV.shape[0], rows)]


class Peaks(NamedTuple):
    """Statistics of a row from which the log-probability of any token follows; [N] each."""

    lse_N: Tensor
    """log sum_v exp(logit), float32."""
    best_N: Tensor
    """int64: the most probable token, the first of equally probable ones."""


def peaks(logits_NV: Tensor) -> Peaks:
    """Computes logsumexp and argmax of each row from one search for the maximum. Without gradient.

    On a CPU `max` takes a fifth of the time of `argmax`, which is not vectorized there.
    """
    lse_N = torch.empty(len(logits_NV), dtype=torch.float32, device=logits_NV.device)
    best_N = torch.empty(len(logits_NV), dtype=torch.long, device=logits_NV.device)
    with torch.no_grad():
        for rows in _row_chunks(logits_NV):
            chunk_nV = logits_NV[rows].float()
            top_n, best_N[rows] = chunk_nV.max(dim=1)
            lse_N[rows] = (chunk_nV - top_n[:, None]).exp_().sum(dim=1).log_().add_(top_n)
    return Peaks(lse_N, best_N)


class Distribution(NamedTuple):
    """Rank of the label, and mean and variance of log-probabilities under the model's own distribution; [N] each."""

    rank_N: Tensor
    """int64: number of tokens that are more probable than the label."""
    mean_N: Tensor
    """sum_v p(v) log p(v), float32, in nats: minus the entropy."""
    variance_N: Tensor
    """sum_v p(v) (log p(v) - mean)^2, float32."""


def label_distribution(logits_NV: Tensor, labels_N: Tensor, lse_N: Tensor) -> Distribution:
    """Computes the rank of each label, and the mean and variance of log p under p, given lse_N from `peaks`. Without gradient.

    The variance is computed from differences to the mean: E[x^2] - E[x]^2 in float32 loses precision where p is concentrated.
    """
    rank_N = torch.empty_like(labels_N)
    mean_N = torch.empty(len(labels_N), dtype=torch.float32, device=logits_NV.device)
    variance_N = torch.empty_like(mean_N)
    with torch.no_grad():
        for rows in _row_chunks(logits_NV):
            # A word of probability 0 counts 0, and 0 * inf is not a number: its logarithm is cut where exp is 0 anyway.
            logp_nV = (logits_NV[rows].float() - lse_N[rows, None]).clamp_(min=-1e15)
            p_nV = logp_nV.exp()
            rank_N[rows] = (logp_nV > logp_nV.gather(1, labels_N[rows, None])).sum(dim=1)
            mean_N[rows] = torch.linalg.vecdot(p_nV, logp_nV)
            variance_N[rows] = torch.linalg.vecdot(p_nV, logp_nV.sub_(mean_N[rows, None]).square_())
    return Distribution(rank_N, mean_N, variance_N)


class LabelLogprob(torch.autograd.Function):
    """Log-probability of labels. Saves the logits and one number per row; the gradient, onehot - softmax, is computed in
    chunks in the logits' dtype."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        lse_N = torch.empty(logits_NV.shape[0], dtype=torch.float32, device=logits_NV.device)
        for rows in _row_chunks(logits_NV):
            lse_N[rows] = logits_NV[rows].float().logsumexp(dim=1)
        ctx.save_for_backward(logits_NV, labels_N, lse_N)
        return logits_NV.gather(1, labels_N[:, None])[:, 0].float() - lse_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        logits_NV, labels_N, lse_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        for rows in _row_chunks(logits_NV):
            chunk_nV = (logits_NV[rows].float() - lse_N[rows, None]).exp_().mul_(-grad_N[rows, None])
            chunk_nV.scatter_add_(1, labels_N[rows, None], grad_N[rows, None])
            grad_NV[rows] = chunk_nV
        return grad_NV, None


class Divergence(torch.autograd.Function):
    """KL divergence with gradients: to the model's logits p - p_ref; to the reference's p_ref (log p_ref - log p - KL)."""

    @staticmethod
    def forward(ctx: Any, reference_NV: Tensor, logits_NV: Tensor) -> Tensor:
        kl_N = torch.empty(logits_NV.shape[0], dtype=torch.float32, device=logits_NV.device)
        for rows in _row_chunks(logits_NV):
            logr_nV, logp_nV = reference_NV[rows].float().log_softmax(dim=1), logits_NV[rows].float().log_softmax(dim=1)
            kl_N[rows] = _weighted(logr_nV.exp(), logr_nV - logp_nV).sum(dim=1)
        ctx.save_for_backward(reference_NV, logits_NV, kl_N)
        return kl_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, Tensor | None]:
        reference_NV, logits_NV, kl_N = ctx.saved_tensors
        grad_reference_NV = torch.empty_like(reference_NV) if ctx.needs_input_grad[0] else None
        grad_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[1] else None
        for rows in _row_chunks(logits_NV):
            logr_nV, logp_nV = reference_NV[rows].float().log_softmax(dim=1), logits_NV[rows].float().log_softmax(dim=1)
            if grad_NV is not None:
                grad_NV[rows] = (logp_nV.exp() - logr_nV.exp()).mul_(grad_N[rows, None])
            if grad_reference_NV is not None:
                grad_reference_NV[rows] = _weighted(logr_nV.exp(), logr_nV - logp_nV - kl_N[rows, None]).mul_(grad_N[rows, None])
        return grad_reference_NV, grad_NV


def _weighted(p_nV: Tensor, values_nV: Tensor) -> Tensor:
    """Computes p * value, with 0 where p is 0, whatever the value (0 * inf is not a number)."""
    return torch.where(p_nV > 0, p_nV * values_nV, 0.0)
