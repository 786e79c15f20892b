"""The rows of a step become micro-batches: padded tokens, the frozen values beside them, and their share in the step."""

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
"""Tokens of one pass on a CPU, where a larger one is no faster and more of it is padding."""
GPU_TOKENS = 32_768
"""Tokens of one pass on a GPU, which a smaller one would not fill."""


class MicroBatch(NamedTuple):
    """One batch that a loss is evaluated on."""

    batch: Batch
    shares: Mapping[str, float]
    """Row set -> what part of the step's prompts of that set is here; over the micro-batches of a step they add up to 1."""


def count_pieces(rows: StepRows, size: int | None, data: TrainingData, method: TrainingMethod, device: torch.device) -> int:
    """In how many micro-batches a step goes through the model: as many as `size` prompts a pass make necessary, and on a CPU as
    make passes of about `CPU_TOKENS` tokens, in which rows of like length are together and little is padding."""
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
    """Cuts the rows of a step into `pieces` micro-batches of at most `size` prompts of a set, with at least one of every set in
    each: rows of like length together, so that little is padding. Losses are means over rows, so the cuts change no value.

    A set with fewer prompts than there are micro-batches is in several of them with the same prompt and a smaller share, so
    that the shares still make the mean over the set.
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
    """For forget and retain prompts the places of each piece, and its share. Sets with the same prompts are cut alike."""
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
    """Ends of `pieces` runs, each of at most `size` of the lengths (longest first), with the least padded tokens in all:
    the sum of (rows in the run) * (its longest row) is smallest."""
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
    """Tokens of the longest row of each prompt times its rows' number: what it takes of a pass."""
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
