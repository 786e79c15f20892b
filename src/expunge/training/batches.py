"""The rows of a step become micro-batches: padded tokens, the frozen values beside them, and their share in the step."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.data.encode import Tokens, collate
from expunge.methods.training.base import Batch, RowSet, TrainingMethod
from expunge.training.data import RowKey, StepRows, TrainingData
from expunge.training.reference import ReferenceTable


class MicroBatch(NamedTuple):
    """One batch that a loss is evaluated on."""

    batch: Batch
    shares: Mapping[str, float]
    """Row set -> what part of the step's prompts of that set is here; over the micro-batches of a step they add up to 1."""


def micro_batches(
    rows: StepRows,
    size: int | None,
    data: TrainingData,
    table: ReferenceTable,
    method: TrainingMethod,
    carried: Mapping[str, Tensor],
    device: torch.device,
) -> Iterator[MicroBatch]:
    """Cuts the rows of a step into micro-batches of at most `size` prompts of a set, with at least one of every set in each.

    A set with fewer prompts than there are micro-batches is in several of them with the same prompt and a smaller share, so
    that the shares still make the mean over the set.
    """
    most = max(map(len, rows.values()))
    pieces = -(-most // (size or most))
    for i in range(pieces):
        cut = {name: _piece(len(prompts), pieces, i) for name, prompts in rows.items()}
        chosen = {name: [rows[name][place] for place in places] for name, (places, _) in cut.items()}
        sets = {name: _tokens(prompts, method.row_sets[name], data, table, method).to(device) for name, prompts in chosen.items()}
        part = next((data.part_of.get(keys[0].row, 0) for keys in _forget_keys(chosen, method.row_sets)), 0)
        yield MicroBatch(
            Batch(sets, table.head, table.start_weights, table.prepared, carried, part),
            {name: share for name, (_, share) in cut.items()},
        )


def _piece(count: int, pieces: int, i: int) -> tuple[range | list[int], float]:
    """The places of piece i, and its share of the whole."""
    if count >= pieces:
        small, larger = divmod(count, pieces)
        start = i * small + min(i, larger)
        places = range(start, start + small + (i < larger))
        return places, len(places) / count
    place = i * count // pieces
    return [place], 1 / (count * sum(j * count // pieces == place for j in range(pieces)))


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
