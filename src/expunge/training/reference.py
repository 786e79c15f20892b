"""Computes the reference table: frozen values of the start model, by quantity and row, once before the loop.

This replaces a second model in memory and a second forward pass in every step. NPO and DPO
need one number per row; KL and UNDIAL need the start model's distribution at answer tokens, which is cached as the final
hidden state (D numbers a token) beside one frozen copy of the head.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from expunge.data.encode import Encoded, Tokens, collate, length_batches
from expunge.methods.training.base import Quantity, RowSet, TrainingMethod
from expunge.models.answer_levels import TOKENS_PER_BATCH
from expunge.models.load import causal_model
from expunge.models.logprobs import FrozenHead, labelled_hidden, labelled_logits, sequence_sum, token_logprobs
from expunge.training.data import RowKey, TrainingData
from expunge.training.pairs import Pairs


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
                missing = [key for key in dict.fromkeys(keys) if key not in known]
                if quantity == "exchanged":
                    known |= _exchanged(missing, data)
                elif quantity == "renamed":
                    known |= _renamed(model, missing, data, rows.names, accelerator)
                else:
                    known |= _per_row(model, {k: data.row(k) for k in missing}, data.pad_id, accelerator, _COMPUTE[quantity])
        if table.values.keys() & {"hidden", "renamed"}:
            table.head = FrozenHead.of(model)
        model.train(was_training)
        return table

    def of(self, quantity: Quantity, keys: Sequence[RowKey]) -> Tensor:
        """Returns the values of some rows as one tensor: `logprob` [B], `hidden` [N, D], `renamed` [N, K, D], `exchanged`
        [N, K, S, 2]."""
        values = [self.values[quantity][key] for key in keys]
        return torch.stack(values) if quantity == "logprob" else torch.cat(values)


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


def _renamed(
    model: nn.Module, keys: Sequence[RowKey], data: TrainingData, names: int, accelerator: Accelerator
) -> dict[RowKey, Tensor]:
    """Returns the hidden states of each row under its other names, at the positions of its labels, [N, K, D]."""
    found = []
    for k in range(names):
        wanted = {key: data.twins[key.row][k].labelled(data.row(key)) for key in keys}
        found.append(_per_row(model, wanted, data.pad_id, accelerator, _hidden))
    return {key: torch.stack([of_name[key] for of_name in found], dim=1) for key in keys}


def _exchanged(keys: Sequence[RowKey], data: TrainingData) -> dict[RowKey, Tensor]:
    """Returns the tokens that stand for each other in each row and its twins, repeated at each of its labels, [N, K, S, 2]."""
    most = max(1, *(len(twin.exchanged) for twins in data.twins for twin in twins))
    found = {}
    for key in keys:
        pairs_KS2 = torch.tensor([[*t.exchanged, *[(0, 0)] * (most - len(t.exchanged))] for t in data.twins[key.row]])
        found[key] = pairs_KS2.view(1, -1, most, 2).expand(len(data.row(key).label_places()), -1, -1, -1)
    return found


def _logprobs(model: nn.Module, tokens: Tokens) -> Iterable[Tensor]:
    labelled = labelled_logits(model, tokens)
    return sequence_sum(token_logprobs(labelled), labelled.row_N, labelled.rows).cpu().unbind()


def _hidden(model: nn.Module, tokens: Tokens) -> Iterable[Tensor]:
    hidden = labelled_hidden(model, tokens)
    counts_B = torch.bincount(hidden.row_N.cpu(), minlength=hidden.rows)
    return torch.split(hidden.hidden_ND.cpu(), counts_B.tolist())


_COMPUTE: dict[Quantity, Callable[[nn.Module, Tokens], Iterable[Tensor]]] = {"logprob": _logprobs, "hidden": _hidden}
