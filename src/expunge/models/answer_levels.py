"""Measures how well a model knows the answers of rows: their mean log-probability, and whether they are the greedy ones.

Shape suffixes: B rows, N labelled tokens of a batch in row-major order.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from expunge.data.encode import Encoded, collate, length_batches
from expunge.models.logprobs import labelled_logits, sequence_mean, sequence_sum, token_logprobs

TOKENS_PER_BATCH = 8192
"""Padded tokens of one forward pass without gradient."""


def mean_answer_probability(
    model: nn.Module, rows: Sequence[Encoded], pad_id: int, device: torch.device, most: int = 96
) -> float:
    """Computes the mean over rows of exp(mean log p of the answer's tokens); over `most` evenly spaced rows if there are
    more."""
    stride = max(1, -(-len(rows) // most))
    return float(answer_levels(model, list(rows)[::stride], pad_id, device).logp_B.exp().mean())


class Levels(NamedTuple):
    """How well a model knows the answers of some rows, on the CPU."""

    logp_B: Tensor
    """Mean log-probability of each row's answer tokens."""
    greedy_B: Tensor
    """Whether every token of the answer is the most probable one."""


def answer_levels(model: nn.Module, rows: Sequence[Encoded], pad_id: int, device: torch.device) -> Levels:
    """Measures all rows, without dropout."""
    found = Levels(torch.empty(len(rows)), torch.empty(len(rows), dtype=torch.bool))
    for batch, tokens in _scored(model, rows, pad_id, device):
        found.logp_B[batch] = sequence_mean(tokens.logp_N, tokens.row_N, len(batch))
        found.greedy_B[batch] = sequence_sum(tokens.missed_N, tokens.row_N, len(batch)) == 0
    return found


def part_levels(model: nn.Module, rows: Sequence[Encoded], pad_id: int, device: torch.device) -> tuple[Levels, Levels]:
    """Measures the two parts of each answer, without dropout: the tokens that its prompt does not contain, and the others
    (`Encoded.copied`). Where a row has no copied tokens the second has nan."""
    found = tuple(Levels(torch.empty(len(rows)), torch.empty(len(rows), dtype=torch.bool)) for _ in range(2))
    copied = [row.copied() for row in rows]
    for batch, tokens in _scored(model, rows, pad_id, device):
        copied_N = torch.tensor([i in copied[b] for b in batch for i in range(rows[b].answer_start, len(rows[b].ids))])
        for levels, counted_N in zip(found, (~copied_N, copied_N), strict=True):
            logp_N, missed_N, row_N = (values_N[counted_N] for values_N in tokens)
            levels.logp_B[batch] = sequence_mean(logp_N, row_N, len(batch))
            levels.greedy_B[batch] = sequence_sum(missed_N, row_N, len(batch)) == 0
    return found[0], found[1]


class _TokenLevels(NamedTuple):
    """Values of the labelled tokens of some rows, on the CPU."""

    logp_N: Tensor
    missed_N: Tensor
    """1 where another token is more probable, otherwise 0."""
    row_N: Tensor


def _scored(
    model: nn.Module, rows: Sequence[Encoded], pad_id: int, device: torch.device
) -> Iterator[tuple[list[int], _TokenLevels]]:
    """Yields indices of rows of similar length, and the values of their labelled tokens."""
    was_training = model.training
    model.eval()
    for batch in length_batches([len(r.ids) for r in rows], TOKENS_PER_BATCH, 256):
        with torch.no_grad():
            labelled = labelled_logits(model, collate([rows[i] for i in batch], pad_id).to(device))
            missed_N = (labelled.logits_NV.argmax(-1) != labelled.labels_N).float()
            yield batch, _TokenLevels(token_logprobs(labelled).float().cpu(), missed_N.cpu(), labelled.row_N.cpu())
    model.train(was_training)
