"""Distributes the batches of an evaluation over the processes of torchrun; every process gets all results.

Batches are the same as on one process, so that scores do not depend on the number of processes. Each process holds the whole
model; if its weights are sharded instead, all processes compute everything together.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, cast

from expunge.errors import ExpungeError
from expunge.processes import group, is_main

if TYPE_CHECKING:
    from torch import nn

Item = TypeVar("Item")
Result = TypeVar("Result")

_alone = ContextVar("alone", default=False)
"""Set while one process works and the others wait for its result, so that no batches are distributed."""


def _others() -> Any:
    """Returns torch.distributed, if there are other processes and batches may be distributed, else None."""
    return None if _alone.get() else group()


def dealt(model: "nn.Module", items: Sequence[Item], compute: Callable[[Item], Result]) -> list[Result]:
    """Computes compute(item) of every item, in order; item i is computed by process i modulo their number."""
    others = _others()
    if others is None or _sharded(model):
        return [compute(item) for item in items]
    world = others.get_world_size()
    mine = [compute(item) for item in items[others.get_rank() :: world]]
    everyone: list[Any] = [None] * world
    others.all_gather_object(everyone, mine)
    return [everyone[i % world][i // world] for i in range(len(items))]


def _sharded(model: "nn.Module") -> bool:
    from torch.distributed.tensor import DTensor

    return any(isinstance(weight, DTensor) for weight in model.parameters())


def from_main(make: Callable[[], Result]) -> Result:
    """Returns what the main process computes, on every process: files are read, code is run and judges are asked once. An
    ExpungeError is raised on all processes, so that none waits for another."""
    others = _others()
    if others is None:
        return make()
    box: list[Any] = [None]
    if is_main():
        token = _alone.set(True)
        try:
            box = [make()]
        except ExpungeError as error:
            box = [error]
        finally:
            _alone.reset(token)
    others.broadcast_object_list(box, src=0)
    if isinstance(box[0], ExpungeError):
        raise box[0]
    return cast(Result, box[0])
