"""Splits the rows of a step into micro-batches of padded tokens, with frozen values and their share of the step."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.data.encode import Tokens, collate
from expunge.methods.training.base import Batch, Prompts, RowSet, TrainingMethod
from expunge.training.data import RowKey, StepRows, TrainingData
from expunge.training.reference import ReferenceTable

CPU_TOKENS = 768
"""Tokens of one pass on a CPU, where larger passes are not faster and contain more padding."""
GPU_TOKENS = 32_768
"""Tokens of one pass on a GPU, where smaller passes do not use it fully."""


class MicroBatch(NamedTuple):
    """One batch on which a loss is evaluated."""

    batch: Batch
    shares: Mapping[str, float]
    """Row set -> the share of the step's prompts of that set in this micro-batch; shares add up to 1 over the step."""


def count_pieces(rows: StepRows, size: int | None, data: TrainingData, method: TrainingMethod, device: torch.device) -> int:
    """Returns the number of micro-batches of a step: as many as `size` prompts per pass require, and on a CPU as many as give
    passes of about `CPU_TOKENS` tokens with rows of similar length and little padding."""
    needed = max(-(-len(prompts) // (size or len(prompts))) for prompts in rows.values())
    if not method.rows_are_independent:
        return needed
    tokens = CPU_TOKENS if device.type == "cpu" else GPU_TOKENS
    wanted = max(-(-sum(_lengths(prompts, data)) // tokens) for prompts in rows.values())
    return max(needed, min(wanted, *map(len, rows.values())))


def micro_batches(
    rows: StepRows,
    pieces: int,
    data: TrainingData,
    table: ReferenceTable,
    method: TrainingMethod,
    carried: Mapping[str, Tensor],
    device: torch.device,
    size: int | None = None,
) -> Iterator[MicroBatch]:
    """Splits the rows of a step into `pieces` micro-batches of at most `size` prompts of a set, with at least one of every set
    in each: rows of similar length together, for little padding. Losses are means over rows, so that the split changes no
    value.

    If a set has fewer prompts than there are micro-batches, a prompt is in several of them with a smaller share, so that the
    result is still the mean over the set.
    """
    cuts = _cuts(rows, pieces, size, data, method)
    for i in range(pieces):
        cut = {name: cuts[rowset.prompts][i] for name, rowset in method.row_sets.items()}
        chosen = {name: [rows[name][place] for place in places] for name, (places, _) in cut.items()}
        sets = {name: _tokens(prompts, method.row_sets[name], data, table, method).to(device) for name, prompts in chosen.items()}
        part = next((data.part_of.get(keys[0].row, 0) for keys in _forget_keys(chosen, method.row_sets)), 0)
        yield MicroBatch(
            Batch(sets, table.head, table.start_weights, table.prepared, carried, part),
            {name: share for name, (_, share) in cut.items()},
        )


def _cuts(
    rows: StepRows, pieces: int, size: int | None, data: TrainingData, method: TrainingMethod
) -> dict[Prompts, list[tuple[Sequence[int], float]]]:
    """Returns, for forget and retain prompts, the indices and the share of each piece. Sets with the same prompts are split
    alike."""
    found: dict[Prompts, list[tuple[Sequence[int], float]]] = {}
    for prompts in {rowset.prompts for rowset in method.row_sets.values()}:
        lengths = [_lengths(rows[name], data) for name, rowset in method.row_sets.items() if rowset.prompts == prompts]
        longest = [max(of_prompt) for of_prompt in zip(*lengths, strict=True)]
        count = len(longest)
        if count < pieces:
            places = [i * count // pieces for i in range(pieces)]
            found[prompts] = [([place], 1 / (count * places.count(place))) for place in places]
            continue
        order = range(count)
        if method.rows_are_independent:
            order = sorted(order, key=lambda i: (-longest[i], i))  # type: ignore[assignment]
            ends = cut_by_length([longest[i] for i in order], pieces, size or count)
        else:
            ends = [-(-(i + 1) * count // pieces) for i in range(pieces)]
        found[prompts] = [
            ([order[i] for i in range(start, end)], (end - start) / count) for start, end in zip([0, *ends], ends, strict=False)
        ]
    return found


def cut_by_length(lengths: Sequence[int], pieces: int, size: int) -> list[int]:
    """Returns the ends of `pieces` runs, each of at most `size` rows, longest first, that have the fewest padded tokens in
    all: the sum of (rows in the run) * (its longest row) is smallest."""
    count = len(lengths)
    length_N = np.asarray(lengths, dtype=np.int64)
    cost_E = np.full(count + 1, np.iinfo(np.int64).max // 4)
    cost_E[0] = 0
    begun: list[NDArray[np.int64]] = []
    for _ in range(pieces):
        best_E, from_E = np.full_like(cost_E, np.iinfo(np.int64).max // 4), np.zeros_like(cost_E)
        for end in range(1, count + 1):
            starts = np.arange(max(0, end - size), end)
            costs = cost_E[starts] + (end - starts) * length_N[starts]
            at = int(costs.argmin())
            best_E[end], from_E[end] = costs[at], starts[at]
        begun.append(from_E)
        cost_E = best_E
    ends = [count]
    for from_E in reversed(begun[1:]):
        ends.append(int(from_E[ends[-1]]))
    return ends[::-1]


def _lengths(prompts: Sequence[tuple[RowKey, ...]], data: TrainingData) -> list[int]:
    """Returns, for each prompt, its longest row times its number of rows: its share of a pass."""
    return [max(len(data.row(key).ids) for key in keys) * len(keys) for keys in prompts]


def _forget_keys(rows: StepRows, sets: Mapping[str, RowSet]) -> Sequence[tuple[RowKey, ...]]:
    return next((rows[name] for name, rowset in sets.items() if rowset.prompts == "forget"), [])


def _tokens(
    prompts: Sequence[tuple[RowKey, ...]], rows: RowSet, data: TrainingData, table: ReferenceTable, method: TrainingMethod
) -> Tokens:
    keys = [key for answers in prompts for key in answers]
    tokens = collate([data.row(key) for key in keys], data.pad_id, method.pad_side)
    for quantity in rows.frozen:
        tokens.frozen[quantity] = table.of(quantity, keys)
    return tokens
