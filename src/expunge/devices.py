"""Chooses the device, moves tensors to it, and bounds batches by its memory.

torch is imported inside functions, since modules that only encode or list do not need it.
"""

import os
from typing import TYPE_CHECKING

from expunge.errors import ExpungeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SHARE = 0.4
"""Share of the free memory that one batch of a pass without gradient may take; its size is a rough estimate."""
WIDEST = 2**15
"""Most tokens of a batch: beyond that a GPU is no faster (an H200 gave 0.54 of its peak at 24,576 tokens of an 8B shape; of a 1B
shape 0.44 at 65,536 with 18 GiB, 0.36 at 131,072 with 31 GiB)."""


def default_device() -> "torch.device":
    """Returns cuda if there is a GPU, else cpu."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def let_segments_grow() -> None:
    """Lets the CUDA allocator extend its segments, so that batches of changing length do not fragment memory.

    Changes nothing if the user has configured the allocator.
    """
    import torch

    if torch.cuda.is_available() and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")


def computes(dtype: "torch.dtype", device: "torch.device") -> bool:
    """Returns whether the device has arithmetic for the dtype.

    A processor without it converts each operand, which takes about 20 times as long as float32 (bfloat16 on AVX2, a forward and
    backward pass of a 135 M model).
    """
    import torch

    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return True
    supported = (
        torch.ops.mkldnn._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else torch.ops.mkldnn._is_mkldnn_fp16_supported
    )
    return bool(supported())


def moved(tensor: "Tensor", device: "torch.device | str") -> "Tensor":
    """Moves a tensor to a device; to a GPU from pinned memory and asynchronously."""
    import torch

    there = torch.device(device)
    if there.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(there, non_blocking=True)
    return tensor.to(there)


def arithmetic() -> str:
    """Describes the GPU that this process uses, and how it multiplies float32, which a repetition of a result needs."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    tf32 = "on" if torch.backends.cuda.matmul.allow_tf32 else "off"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, TF32 {tf32}"


def tokens_that_fit(device: "torch.device", bytes_per_token: int, usual: int) -> int:
    """Returns the tokens of one batch without gradient: by the free memory of a GPU, `usual` otherwise."""
    import torch

    if device.type != "cuda":
        return usual
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(256, min(WIDEST, int(SHARE * free) // bytes_per_token))


def out_of_memory(where: str, remedy: str) -> ExpungeError:
    """Makes the error that replaces the allocator's message."""
    import torch

    size = ""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        size = f" ({torch.cuda.get_device_name()}, {torch.cuda.get_device_properties().total_memory / 2**30:.0f} GiB)"
    return ExpungeError(f"out of memory {where}{size}; {remedy}")
