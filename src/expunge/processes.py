"""Under torchrun: joining the other processes, which of them writes, and leaving them in order."""

import atexit
import os
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import distributed, nn

Model = TypeVar("Model", bound=nn.Module)


def count() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Joins the other processes of torchrun, each with its own device; alone, and when already joined, nothing happens.

    Who joined here leaves when the interpreter ends: gloo's threads, still running when the process group's memory goes,
    abort a process whose work is done (on a busy machine in about every eighth process).
    """
    if count() > 1 and not distributed.is_initialized():
        PartialState(cpu=not torch.cuda.is_available())
        atexit.register(_leave)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def is_main() -> bool:
    """Whether this process writes files and prints; right before joining too."""
    return distributed.get_rank() == 0 if distributed.is_initialized() else os.environ.get("RANK", "0") == "0"


def place(model: Model) -> Model:
    """Moves the model to this process's device; alone, it stays where it was loaded."""
    if count() > 1:
        model.to(PartialState(cpu=not torch.cuda.is_available()).device)
    return model
