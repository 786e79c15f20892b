"""Computes the reference table: frozen values of the start model, by quantity and row, once before the loop.

This replaces a second model in memory and a second forward pass in every step. NPO and DPO
need one number per row; KL and UNDIAL need the start model's distribution at answer tokens, which is cached as the final
hidden state (D numbers a token) beside one frozen copy of the head.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from expunge.data.encode import Encoded, Tokens, collate, length_batches
from expunge.methods.training.base import Quantity, RowSet, TrainingMethod
from expunge.models.load import causal_model
from expunge.models.logprobs import FrozenHead, labelled_hidden, labelled_logits, sequence_mean, sequence_sum, token_logprobs
from expunge.training.data import RowKey, TrainingData
from expunge.training.pairs import Pairs

TOKENS_PER_BATCH = 8192
"""Padded tokens of one forward pass without gradient."""


@dataclass
class ReferenceTable:
    """Frozen values by quantity and row, and those that are common to all rows."""

    values: dict[Quantity, dict[RowKey, Tensor]] = field(default_factory=dict)
    head: FrozenHead | None = None
    start_weights: dict[str, Tensor] | None = None
    prepared: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def compute(
        cls,
        model: nn.Module,
        method: TrainingMethod,
        data: TrainingData,
        plan: Pairs,
        steps: range,
        accelerator: Accelerator,
        *,
        by_part: bool = False,
    ) -> "ReferenceTable":
        """Runs the start model over the rows that this process will visit in `steps`; skipped if no set needs a value.

        by_part  also with labels on a part of the answer only, for runs in which the other part may rest
        """
        table = cls()
        if method.needs_start_weights:
            moving = ((n, p) for n, p in causal_model(model).named_parameters() if p.requires_grad)
            table.start_weights = {name: p.detach().clone() for name, p in moving}
        sets = {name: rows for name, rows in method.row_sets.items() if rows.frozen}
        if not sets:
            return table
        was_training = model.training
        model.eval()
        visited = _visited(sets, data, plan, steps, accelerator)
        for name, rows in sets.items():
            for quantity in sorted(rows.frozen):
                known = table.values.setdefault(quantity, {})
                keys = [of for key in visited[name] for of in (key, *(_parts(key, data) if by_part else ()))]
                wanted = {key: data.row(key) for key in keys if key not in known}
                known |= _per_row(model, wanted, data.pad_id, accelerator, _COMPUTE[quantity])
        if "hidden" in table.values:
            table.head = FrozenHead.of(model)
        model.train(was_training)
        return table

    def of(self, quantity: Quantity, keys: Sequence[RowKey]) -> Tensor:
        """Returns the values of some rows as one tensor: `logprob` [B], `hidden` [N, D]."""
        values = [self.values[quantity][key] for key in keys]
        return torch.cat(values) if quantity == "hidden" else torch.stack(values)


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


def _visited(
    sets: Mapping[str, RowSet], data: TrainingData, plan: Pairs, steps: range, accelerator: Accelerator
) -> dict[str, list[RowKey]]:
    """Returns row set -> the keys that this process will visit, each once, in the order of their first visit."""
    visited: dict[str, dict[RowKey, None]] = {name: {} for name in sets}
    for step in steps:
        drawn = data.step_rows(sets, plan, step, accelerator.process_index, accelerator.num_processes)
        for name, prompts in drawn.items():
            visited[name].update((key, None) for keys in prompts for key in keys)
    return {name: list(keys) for name, keys in visited.items()}


def _parts(key: RowKey, data: TrainingData) -> Sequence[RowKey]:
    """Returns a forget row's own answer with labels on either part, where it has two."""
    if key.answers != "own" or key.prompts != "forget" or not data.row(key).copied():
        return ()
    return key._replace(part="own"), key._replace(part="copied")


def _per_row(
    model: nn.Module,
    wanted: dict[RowKey, Encoded],
    pad_id: int,
    accelerator: Accelerator,
    compute: Callable[[nn.Module, Tokens], Iterable[Tensor]],
) -> dict[RowKey, Tensor]:
    """Yields one value per row, which `compute` moves to the CPU. With sharding all processes must run equally many forward
    passes, so those with fewer batches repeat their last one."""
    keys = list(wanted)
    batches = length_batches([len(wanted[k].ids) for k in keys], TOKENS_PER_BATCH, 256)
    most = int(accelerator.gather(torch.tensor([len(batches)], device=accelerator.device)).max())
    values: dict[RowKey, Tensor] = {}
    with torch.no_grad(), accelerator.autocast():
        for n in range(most):
            batch = batches[min(n, len(batches) - 1)]
            tokens = collate([wanted[keys[i]] for i in batch], pad_id).to(accelerator.device)
            values |= zip([keys[i] for i in batch], compute(model, tokens), strict=True)
    return values


def _logprobs(model: nn.Module, tokens: Tokens) -> Iterable[Tensor]:
    labelled = labelled_logits(model, tokens)
    return sequence_sum(token_logprobs(labelled), labelled.row_N, labelled.rows).cpu().unbind()


def _hidden(model: nn.Module, tokens: Tokens) -> Iterable[Tensor]:
    hidden = labelled_hidden(model, tokens)
    counts_B = torch.bincount(hidden.row_N.cpu(), minlength=hidden.rows)
    return torch.split(hidden.hidden_ND.cpu(), counts_B.tolist())


_COMPUTE: dict[Quantity, Callable[[nn.Module, Tokens], Iterable[Tensor]]] = {"logprob": _logprobs, "hidden": _hidden}
