"""Evaluation on several processes under torchrun: whole batches are dealt out and everyone gets everyone's results.

Batches are made as on one process and never depend on who computes them, so that the scores of one process and of many are the
same numbers. Each process holds the whole model; where its weights are sharded instead, all compute everything together.
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
"""Set where one process works while the others wait for what it makes: nothing may be dealt out to them."""


def _others() -> Any:
    """torch.distributed, where there are other processes and work may be dealt out to them, else None."""
    return None if _alone.get() else group()


def dealt(model: "nn.Module", items: Sequence[Item], compute: Callable[[Item], Result]) -> list[Result]:
    """compute(item) of every item, in order; item i is computed by process i modulo their number."""
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
    """What the main process makes, on every process: files are read, code is run and judges are asked once. What the user can put
    right is raised everywhere, so that no process waits for one that has left."""
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
