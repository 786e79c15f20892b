"""Under torchrun: joining the other processes, which of them writes, and leaving them in order."""

import atexit
import os

import torch
from accelerate import PartialState
from torch import distributed


def join() -> None:
    """Joins the other processes of torchrun, each with its own device; alone, and when already joined, nothing happens.

    Who joined here leaves when the interpreter ends: gloo's threads, still running when the process group's memory goes,
    abort a process whose work is done (on a busy machine in about every eighth process).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        PartialState(cpu=not torch.cuda.is_available())
        atexit.register(_leave)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def is_main() -> bool:
    """Whether this process writes files and prints; right before joining too."""
    return distributed.get_rank() == 0 if distributed.is_initialized() else os.environ.get("RANK", "0") == "0"
