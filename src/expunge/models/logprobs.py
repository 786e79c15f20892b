"""Token log-probabilities, sequence sums, KL: the only place that shifts labels and masks positions.

Shape suffixes: B rows, T positions, D width, V vocabulary, N labelled tokens of a batch in row-major order.
The label at position t is predicted from position t - 1; logits are computed at predicting positions and nowhere else.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from expunge.data.encode import Tokens
from expunge.errors import ExpungeError
from expunge.models.load import causal_model

CHUNK_ELEMENTS = 2**22
"""Logits are turned into float32 so many at a time (16 MiB), however many labelled tokens and words there are."""


class Labelled(NamedTuple):
    """Logits where a label is predicted."""

    logits_NV: Tensor
    """As the model gives them (its dtype, its softcap and scale applied), differentiable."""
    labels_N: Tensor
    row_N: Tensor
    """Which batch row each labelled token is of."""
    rows: int
    """B, also when the last rows have no labelled token."""


class LabelledHidden(NamedTuple):
    """What the output head reads where a label is predicted."""

    hidden_ND: Tensor
    labels_N: Tensor
    row_N: Tensor
    rows: int


def labelled_logits(model: nn.Module, tokens: Tokens) -> Labelled:
    """One forward pass that computes logits only at the positions that predict a label.

    A pre-hook on the output head keeps N of its B*T input rows. So the model is called as it is, whatever wraps it (PEFT, DDP,
    FSDP2) and whatever it does after the head (softcap, scale), and the [B, T, V] logits never exist.
    Positions are counted from the first attended token, so that padding on either side changes no value.
    """
    labels_N, index_N = _labels(tokens)
    _, output = _forward(model, tokens, index_N, head=True)
    rows, length = tokens.labels_BT.shape
    return Labelled(output.logits, labels_N, index_N // length, rows)


def labelled_hidden(model: nn.Module, tokens: Tokens) -> LabelledHidden:
    """The head's input at the same positions; the head itself is given no rows and costs nothing.

    [N, D] is what to keep of a frozen reference instead of its [N, V] logits; `FrozenHead` makes those when they are needed.
    The head's weights get no gradient: under DDP call it without gradient, or on parameters below the head only.
    """
    labels_N, index_N = _labels(tokens)
    hidden_ND, _ = _forward(model, tokens, index_N, head=False)
    rows, length = tokens.labels_BT.shape
    return LabelledHidden(hidden_ND, labels_N, index_N // length, rows)


def token_logprobs(labelled: Labelled) -> Tensor:
    """log p(label) of each labelled token, float32 [N], in nats: logit of the label minus logsumexp of the row.

    Neither direction holds a float32 copy of the logits, nor their log-softmax: rows go through in chunks.
    """
    logp_N: Tensor = _TokenLogprobs.apply(labelled.logits_NV, labelled.labels_N)  # type: ignore[no-untyped-call]
    return logp_N


def kl_divergence(reference_logits_NV: Tensor, logits_NV: Tensor) -> Tensor:
    """KL(reference || model) = sum_v p_ref(v) (log p_ref(v) - log p(v)) of each labelled token, float32 [N], in nats.

    Differentiable in both arguments; exchange them for the reverse divergence.
    """
    if reference_logits_NV.shape != logits_NV.shape:
        raise ValueError(
            f"reference logits {tuple(reference_logits_NV.shape)} and logits {tuple(logits_NV.shape)} differ in shape"
        )
    kl_N: Tensor = _Divergence.apply(reference_logits_NV, logits_NV)  # type: ignore[no-untyped-call]
    return kl_N


def sequence_sum(values_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """Sum over the labelled tokens of each row, [B]; 0 for a row without any."""
    return values_N.new_zeros(rows).index_add(0, row_N, values_N)


def sequence_mean(values_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """Mean over the labelled tokens of each row, [B]; NaN for a row without any, which has no mean."""
    return sequence_sum(values_N, row_N, rows) / sequence_sum(torch.ones_like(values_N), row_N, rows)


def position_ids(attention_mask_BT: Tensor) -> Tensor:
    """0 at the first attended token of each row, and 0 on the left padding before it."""
    return (attention_mask_BT.long().cumsum(dim=1) - 1).clamp(min=0)


def _labels(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """labels_N, and where they are predicted from: index_N into the B * T positions."""
    index_N = (tokens.labels_BT != -100).flatten().nonzero()[:, 0]
    before_N = index_N - 1
    alone_N = (index_N % tokens.labels_BT.shape[1] == 0) | (tokens.attention_mask_BT.flatten()[before_N] == 0)
    if alone_N.any():
        raise ValueError("the first token of a row has a label, but nothing stands before it to predict it from")
    return tokens.labels_BT.flatten()[index_N], before_N


def _forward(model: nn.Module, tokens: Tokens, index_N: Tensor, *, head: bool) -> tuple[Tensor, Any]:
    """The head's input at the given positions, and the model's output, whose logits are of these rows (or of none)."""
    inner = causal_model(model)
    output_head: nn.Module | None = inner.get_output_embeddings()  # type: ignore[no-untyped-call]
    if output_head is None:
        raise ExpungeError(f"{type(inner).__name__} has no output head; expunge needs a causal language model")
    shape = tokens.input_ids_BT.shape
    seen: list[Tensor] = []

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if inputs[0].shape[:-1] != shape:
            raise ExpungeError(
                f"{type(inner).__name__} gives its head {list(inputs[0].shape)} for {list(shape)} tokens: not supported"
            )
        hidden_ND = inputs[0].flatten(0, 1).index_select(0, index_N.to(inputs[0].device))
        seen.append(hidden_ND)
        return (hidden_ND if head else hidden_ND[:0], *inputs[1:])

    positions = {"position_ids": position_ids(tokens.attention_mask_BT)} if _takes_positions(type(inner).forward) else {}
    handle = output_head.register_forward_pre_hook(select)
    try:
        output = model(input_ids=tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT, use_cache=False, **positions)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ExpungeError(f"{type(inner).__name__} called its output head {len(seen)} times for one forward pass: not supported")
    return seen[0], output


@cache
def _takes_positions(forward: Callable[..., Any]) -> bool:
    """BLOOM has none: it derives ALiBi distances from the attention mask."""
    return "position_ids" in inspect.signature(forward).parameters


def _row_chunks(logits_NV: Tensor) -> list[slice]:
    rows = max(1, CHUNK_ELEMENTS // logits_NV.shape[1])
    return [slice(start, start + rows) for start in range(0, logits_NV.shape[0], rows)]


class _TokenLogprobs(torch.autograd.Function):
    """Saves the logits and one number per row; the gradient, onehot - softmax, is made chunk by chunk in the logits' dtype."""

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


class _Divergence(torch.autograd.Function):
    """Gradients: to the model's logits p - p_ref; to the reference's p_ref (log p_ref - log p - KL)."""

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
    """p * value, where a word of probability 0 counts 0 whatever its value (0 * inf is not a number)."""
    return torch.where(p_nV > 0, p_nV * values_nV, 0.0)
