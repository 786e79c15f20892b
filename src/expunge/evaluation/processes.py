"""Evaluation on several processes under torchrun: whole batches are dealt out and everyone gets everyone's results.

Batches are made as on one process and never depend on who computes them, so that the scores of one process and of many are the
same numbers. Each process holds the whole model; where its weights are sharded instead, all compute everything together.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from torch import distributed, nn
from torch.distributed.tensor import DTensor

from expunge.processes import is_main

Item = TypeVar("Item")
Result = TypeVar("Result")


def dealt(model: nn.Module, items: Sequence[Item], compute: Callable[[Item], Result]) -> list[Result]:
    """compute(item) of every item, in order; item i is computed by process i modulo their number."""
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    if world == 1 or any(isinstance(weight, DTensor) for weight in model.parameters()):
        return [compute(item) for item in items]
    mine = [compute(item) for item in items[distributed.get_rank() :: world]]
    everyone: list[Any] = [None] * world
    distributed.all_gather_object(everyone, mine)
    return [everyone[i % world][i // world] for i in range(len(items))]


def dealt_in_parts(model: nn.Module, items: Sequence[Item], compute: Callable[[Sequence[Item]], list[Result]]) -> list[Result]:
    """compute(items), where each process gets one part of the items at once and makes its own batches of them."""
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    parts = dealt(model, [items[rank::world] for rank in range(world)], compute)
    return [parts[i % world][i // world] for i in range(len(items))]


def from_main(make: Callable[[], Result]) -> Result:
    """What the main process makes, on every process: files are read and code is run once."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return make()
    box = [make() if is_main() else None]
    distributed.broadcast_object_list(box, src=0)
    return cast(Result, box[0])
