"""Joins the processes of torchrun, chooses the one that writes, and leaves them in order.

torch is imported only to join others: a process that is alone, such as that of a command that lists something, needs none.
"""

import atexit
import os
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

Model = TypeVar("Model", bound="nn.Module")


def count() -> int:
    """Returns the number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Joins the other processes of torchrun, each with its own device; does nothing without torchrun, or if already joined.

    The process leaves the group when the interpreter exits: otherwise gloo's threads, still running when the process group's
    memory is freed, can abort a finished process (on a busy machine, about one in eight).
    """
    if count() > 1 and group() is None:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
        torch.distributed.barrier()  # nobody goes on, and perhaps leaves, while another is still connecting
        atexit.register(_leave)


def group() -> Any:
    """Returns torch.distributed, if this process has joined others, else None."""
    torch = sys.modules.get("torch")
    found = torch.distributed if torch is not None else None
    return found if found is not None and found.is_initialized() else None


def _leave() -> None:
    if (joined := group()) is not None:
        joined.destroy_process_group()


def is_main() -> bool:
    """Returns whether this process writes files and prints; also before joining."""
    joined = group()
    return joined.get_rank() == 0 if joined is not None else os.environ.get("RANK", "0") == "0"


def place(model: Model) -> Model:
    """Moves the model to this process's device; without torchrun, it stays where it was loaded."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        model.to(PartialState(cpu=not torch.cuda.is_available()).device)
    return model
