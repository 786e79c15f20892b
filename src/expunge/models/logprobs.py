"""Computes log-probabilities of labelled tokens, sums over sequences, and KL divergences, from logits at labelled positions
only.

Shape suffixes: B rows, T positions, D width, V vocabulary, N labelled tokens of a batch in row-major order.
The label at position t is predicted from position t - 1; logits are computed at predicting positions and nowhere else.
"""

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from expunge.data.encode import Tokens
from expunge.data.places import places_of
from expunge.errors import ExpungeError
from expunge.models.architecture import ARCHITECTURES
from expunge.models.load import causal_model
from expunge.models.vocabulary import Divergence, LabelLogprob

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedConfig

PREDICTING: ContextVar[Tensor | None] = ContextVar("predicting", default=None)
"""During a labelled forward pass: index_N, the positions among B * T that predict a label, row by row. Guards read from it
where each row's prompt ends, and which row logits belong to."""


class Labelled(NamedTuple):
    """Logits at the positions that predict a label."""

    logits_NV: Tensor
    """As the model computes them (its dtype, with its softcap and scale), differentiable."""
    labels_N: Tensor
    row_N: Tensor
    """Batch row of each labelled token."""
    rows: int
    """B, also if the last rows have no labelled token."""


class LabelledHidden(NamedTuple):
    """The input of the output head at the positions that predict a label."""

    hidden_ND: Tensor
    labels_N: Tensor
    row_N: Tensor
    rows: int


def labelled_logits(model: nn.Module, tokens: Tokens) -> Labelled:
    """Runs one forward pass that computes logits only at the positions that predict a label.

    A pre-hook on the output head selects N of its B*T input rows. The model itself is called unchanged, in any wrapper (PEFT,
    DDP, FSDP2) and with any step after the head (softcap, scale), and the [B, T, V] logits are never in memory. Positions are
    counted from the first attended token, so that padding on either side changes no value.
    """
    labels_N, index_N = tokens.places or places_of(tokens.labels_BT, tokens.attention_mask_BT)
    _, output = _forward(model, tokens.input_ids_BT, tokens.attention_mask_BT, index_N, head=True)
    rows, length = tokens.labels_BT.shape
    return Labelled(output.logits, labels_N, index_N // length, rows)


def labelled_hidden(model: nn.Module, tokens: Tokens) -> LabelledHidden:
    """Runs one forward pass and returns the head's input at the same positions; the head gets no rows and costs nothing.

    [N, D] is cached for a frozen reference instead of its [N, V] logits, which `FrozenHead` computes when needed.
    The head's weights get no gradient: under DDP call it without gradient, or on parameters below the head only.
    """
    labels_N, index_N = tokens.places or places_of(tokens.labels_BT, tokens.attention_mask_BT)
    hidden_ND, _ = _forward(model, tokens.input_ids_BT, tokens.attention_mask_BT, index_N, head=False)
    rows, length = tokens.labels_BT.shape
    return LabelledHidden(hidden_ND, labels_N, index_N // length, rows)


def logits_at(
    model: nn.Module,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor | None,
    index_N: Tensor,
    position_ids_BT: Tensor | None = None,
) -> Tensor:
    """Runs one forward pass and returns logits [N, V] at index_N, into the B * T positions, only.

    attention_mask_BT   1 where there is a token; or, with position_ids_BT, [B, 1, T, T]: which token attends to which, as the
                        model's attention takes it (bool for sdpa, to be added to the scores for eager); None with
                        position_ids_BT and an attention function that knows it by itself
    """
    _, output = _forward(model, input_ids_BT, attention_mask_BT, index_N, head=True, position_ids_BT=position_ids_BT)
    logits_NV: Tensor = output.logits
    return logits_NV


class Cached(NamedTuple):
    """Logits, and the key-value cache for the next pass."""

    logits_NV: Tensor
    cache: "Cache"


def cached_logits(
    model: nn.Module,
    input_ids_BT: Tensor,
    attention_mask_BS: Tensor | None,
    index_N: Tensor,
    cache: "Cache | None" = None,
    position_ids_BT: Tensor | None = None,
) -> Cached:
    """Runs one forward pass over T new tokens per row after the S - T tokens in `cache`; returns logits at index_N only.

    index_N             into the B * T new positions
    attention_mask_BS   1 where there is a token, cached or new. Padding may be before the cached tokens and after the new
                        ones, but not between them, because a sliding window counts columns. None as in `logits_at`

    Raises ExpungeError for a model without a cache of keys and values.
    """
    from transformers import Cache

    _, output = _forward(
        model, input_ids_BT, attention_mask_BS, index_N, head=True, cache=cache, keep=True, position_ids_BT=position_ids_BT
    )
    if not isinstance(output.past_key_values, Cache):
        raise ExpungeError(f"{type(causal_model(model)).__name__} keeps no keys and values to go on from: not supported")
    return Cached(output.logits, output.past_key_values)


def token_logprobs(labelled: Labelled) -> Tensor:
    """Computes log p(label) of each labelled token, float32 [N], in nats: logit of the label minus logsumexp of the row.

    Neither forward nor backward pass makes a float32 copy of the logits or of their log-softmax: rows are processed in chunks.
    """
    logp_N: Tensor = LabelLogprob.apply(labelled.logits_NV, labelled.labels_N)  # type: ignore[no-untyped-call]
    return logp_N


def kl_divergence(reference_logits_NV: Tensor, logits_NV: Tensor) -> Tensor:
    """Computes KL(reference || model) = sum_v p_ref(v) (log p_ref(v) - log p(v)) of each labelled token, float32 [N], in nats.

    Differentiable in both arguments; swap them for the reverse divergence.
    """
    if reference_logits_NV.shape != logits_NV.shape:
        raise ValueError(
            f"reference logits {tuple(reference_logits_NV.shape)} and logits {tuple(logits_NV.shape)} differ in shape"
        )
    kl_N: Tensor = Divergence.apply(reference_logits_NV, logits_NV)  # type: ignore[no-untyped-call]
    return kl_N


def sequence_sum(values_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """Computes the sum over the labelled tokens of each row, [B]; 0 for a row without any."""
    return values_N.new_zeros(rows).index_add(0, row_N, values_N)


def sequence_mean(values_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """Computes the mean over the labelled tokens of each row, [B]; NaN for a row without any."""
    return sequence_sum(values_N, row_N, rows) / sequence_sum(torch.ones_like(values_N), row_N, rows)


def position_ids(attention_mask_BT: Tensor) -> Tensor:
    """Computes position ids: 0 at the first attended token of each row, and on the left padding before it."""
    return (attention_mask_BT.long().cumsum(dim=1) - 1).clamp(min=0)


@dataclass(frozen=True)
class FrozenHead:
    """A frozen copy of the output head: computes the start model's logits from cached hidden states while the model is trained.

    logits = scale * cap * tanh((hidden W^T + b) / cap), with scale 1 and no cap for most architectures.
    W is a copy, also where the model ties it to the embeddings.
    """

    weight_VD: Tensor
    bias_V: Tensor | None
    softcap: float | None
    scale: float

    @classmethod
    def of(cls, model: nn.Module) -> "FrozenHead":
        """Copies the head (gathered, if it is sharded) and checks on eight tokens that it gives the model's own logits.
        Raises ExpungeError if it does not, or if the head is not a plain linear layer."""
        inner, head = causal_model(model), output_head(model)
        if not isinstance(head, nn.Linear):
            raise ExpungeError(
                f"the output head is a {type(head).__name__}, not a plain linear layer, so it cannot be copied as a reference; "
                "leave the head out of the adapter"
            )
        bias_V = None if head.bias is None else _copy(head.bias)
        frozen = cls(_copy(head.weight), bias_V, *_after_head(inner.config))
        frozen._check(model)
        return frozen

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """Maps [N, D] from `labelled_hidden` to the logits [N, V] that `labelled_logits` would have given."""
        logits_NV = functional.linear(hidden_ND.to(self.weight_VD.dtype), self.weight_VD, self.bias_V)
        if self.softcap is not None:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV * self.scale if self.scale != 1.0 else logits_NV

    def _check(self, model: nn.Module) -> None:
        """Raises ExpungeError if the model has a step after the head that is unknown here."""
        inner = causal_model(model)
        words = self.weight_VD.shape[0]
        ids_BT = (torch.arange(1, 9, device=self.weight_VD.device) * words // 10)[None]
        tokens = Tokens(ids_BT, torch.ones_like(ids_BT), torch.full_like(ids_BT, -100))
        with torch.no_grad():
            index_N = torch.arange(8, device=ids_BT.device)
            hidden_ND, output = _forward(model, tokens.input_ids_BT, tokens.attention_mask_BT, index_N, head=True)
            error = (self(hidden_ND).float() - output.logits.float()).abs().max()
        if not error <= 0.02 * output.logits.float().abs().max():
            raise ExpungeError(
                f"{type(inner).__name__} changes its logits after the head in a way that expunge does not know (model type "
                f"{inner.config.model_type}); use a retain term that needs no reference logits"
            )


def output_head(model: nn.Module) -> nn.Module:
    """Returns the module that computes logits from hidden states, inside any wrapper. Raises ExpungeError if there is none."""
    inner = causal_model(model)
    head: nn.Module | None = inner.get_output_embeddings()
    if head is None:
        raise ExpungeError(f"{type(inner).__name__} has no output head; expunge needs a causal language model")
    return head


def _after_head(config: "PreTrainedConfig") -> tuple[float | None, float]:
    """Returns softcap and scale of the logits; none for a model type that is not in the table, which `FrozenHead` checks."""
    known = ARCHITECTURES.get(config.model_type)
    softcap = getattr(config, known.softcap) if known is not None and known.softcap else None
    return softcap, 1.0 / getattr(config, known.logit_divisor) if known is not None and known.logit_divisor else 1.0


def _copy(parameter: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return whole.detach().clone()


def _forward(
    model: nn.Module,
    input_ids_BT: Tensor,
    attention_mask_BS: Tensor | None,
    index_N: Tensor,
    *,
    head: bool,
    cache: "Cache | None" = None,
    keep: bool = False,
    position_ids_BT: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """Returns the head's input at the given positions, and the model's output with logits of these rows (or of none)."""
    inner = causal_model(model)
    shape = input_ids_BT.shape
    seen: list[Tensor] = []

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if inputs[0].shape[:-1] != shape:
            raise ExpungeError(
                f"{type(inner).__name__} gives its head {list(inputs[0].shape)} for {list(shape)} tokens: not supported"
            )
        hidden_ND = inputs[0].flatten(0, 1).index_select(0, index_N.to(inputs[0].device))
        seen.append(hidden_ND)
        return (hidden_ND if head else hidden_ND[:0], *inputs[1:])

    more: dict[str, Any] = {"past_key_values": cache} if cache is not None else {}
    if _takes_positions(type(inner).forward):
        if position_ids_BT is None:
            assert attention_mask_BS is not None, "positions are counted in the mask"
            position_ids_BT = position_ids(attention_mask_BS)[:, -shape[1] :]
        more["position_ids"] = position_ids_BT
    handle = output_head(model).register_forward_pre_hook(select)
    token = PREDICTING.set(index_N)
    try:
        output = model(input_ids=input_ids_BT, attention_mask=attention_mask_BS, use_cache=keep, **more)
    finally:
        PREDICTING.reset(token)
        handle.remove()
    if len(seen) != 1:
        raise ExpungeError(f"{type(inner).__name__} called its output head {len(seen)} times for one forward pass: not supported")
    return seen[0], output


@cache
def _takes_positions(forward: Callable[..., Any]) -> bool:
    """Returns whether the model takes position ids; BLOOM does not: it derives ALiBi distances from the attention mask."""
    return "position_ids" in inspect.signature(forward).parameters
