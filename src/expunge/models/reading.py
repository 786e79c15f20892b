"""Checks that a model reads text as this library scores and trains it, and how much of a text it can read.

Shape suffixes: T positions, V vocabulary.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from expunge.data.encode import Encoder
from expunge.errors import ExpungeError
from expunge.models.limits import embedded, fixed_positions, scaled_from
from expunge.models.load import causal_model
from expunge.models.logprobs import logits_at

Ids = tuple[int, ...]

ROUNDING = 2e-3
"""Allowed difference of a log-probability, in nats, in float32: much less than the effect of a wrong shortcut."""
HALF_ROUNDING = 0.1
"""Allowed difference in 16 bits, as a share of the difference between the distributions of neighbouring tokens (root mean squares
over the vocabulary). Rounding grows with the depth: 0.034 at a position, and up to 0.65 nats of one token, in bfloat16 with 30
blocks (SmolLM2-135M)."""


def bounded(encoder: Encoder, model: nn.Module) -> Encoder:
    """Returns the encoder with `max_length` lowered to what the model reads in the same way in any batch, with a warning, if that
    is less."""
    most, scaled = fixed_positions(model), scaled_from(model)
    if scaled is not None and (most is None or scaled < most):
        most, why = scaled, "tokens up to which the model's positions do not depend on the longest row beside a text"
    else:
        why = "positions that the model has"
    if most is None or most >= encoder.max_length:
        return encoder
    said = f"--max-length {encoder.max_length} is more than the {most} {why}; longer rows are cut"
    warnings.warn(said, UserWarning, stacklevel=2)
    return Encoder(encoder.tokenizer, encoder.format, max_length=most)


@torch.no_grad()
def check_reading(model: nn.Module) -> None:
    """Raises ExpungeError if the model, called with token ids alone, gives other logits than the passes of this library, which
    number positions from 0 and read causally (RoBERTa starts behind its pad token's id, BERT and CPM-Ant read both ways)."""
    inner = causal_model(model)
    words, device, training = embedded(model), inner.device, model.training
    row = tuple(1 + (5 * i * i + 3 * i) % (words - 1) for i in range(8))
    model.eval()
    try:
        plain_TV, begun_TV = (
            inner(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0] for ids in (row, row[:5])
        )
    except Exception:  # some architectures take no plain call; their passes are compared with each other only
        return
    finally:
        model.train(training)
    model.eval()
    try:
        ours_TV, tolerance = alone(model, row, device), spread([plain_TV])
    finally:
        model.train(training)
    pairs = ((ours_TV, plain_TV), (plain_TV[: len(begun_TV)], begun_TV))
    finite = all(bool(logits_TV.isfinite().all()) for logits_TV in (ours_TV, plain_TV, begun_TV))  # others get no score at all
    if finite and not all(alike(a_TV, b_TV, tolerance) for a_TV, b_TV in pairs):
        off = max(float(_difference(a_TV, b_TV).abs().max()) for a_TV, b_TV in pairs)
        raise ExpungeError(
            f"models of the type {inner.config.model_type} do not read text as expunge scores and trains it (a log-probability "
            f"differs by {off:.2g} nats from the model's own), so that every number would be off; give another model"
        )


def alone(model: nn.Module, row: Ids, device: torch.device) -> Tensor:
    """Returns logits [T, V] of a plain pass over one row."""
    ids_BT = torch.tensor([row], device=device)
    return logits_at(model, ids_BT, torch.ones_like(ids_BT), torch.arange(len(row), device=device))


def spread(rows: Sequence[Tensor]) -> float:
    """Computes the root mean square difference of the log-probabilities of neighbouring positions."""
    return float(torch.cat([_difference(row_TV[1:], row_TV[:-1]) for row_TV in rows]).square().mean().sqrt())


def alike(a_TV: Tensor, b_TV: Tensor, spread: float) -> bool:
    """Returns whether two results of the same rows differ by rounding only; never if one is not finite."""
    difference_TV = _difference(a_TV, b_TV)
    if a_TV.dtype in (torch.float16, torch.bfloat16):
        return bool((difference_TV.square().mean(-1).sqrt() <= HALF_ROUNDING * spread).all())
    return bool((difference_TV.abs() <= ROUNDING).all())


def _difference(a_TV: Tensor, b_TV: Tensor) -> Tensor:
    return a_TV.float().log_softmax(-1) - b_TV.float().log_softmax(-1)
