"""Rounds matrices to the grids of common quantization formats, in plain torch.

Every format is simulated: weights are rounded to its grid and kept in their own type, so that any machine can run it. Only
matrices of linear layers are rounded, as the libraries do; embeddings and norms stay.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

GROUP, NF4_BLOCK, Q4_BLOCK = 128, 64, 32
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, scaled to [-1, 1]: the code book of QLoRA (Dettmers et al. 2023, arXiv 2305.14314)."""


def round_to_nearest(weight_OI: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Rounds symmetrically to 2^(bits-1) - 1 steps on either side of zero, with one scale per row or group of `group`
    columns."""
    grouped, shape = _grouped(weight_OI, group)
    steps = 2 ** (bits - 1) - 1
    scale = grouped.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / steps
    return _ungrouped((grouped / scale).round().clamp(-steps, steps) * scale, shape)


def nf4(weight_OI: Tensor) -> Tensor:
    """Rounds to the nearest of sixteen values in each block of 64, scaled by its largest magnitude (no double quantization)."""
    grouped, shape = _grouped(weight_OI, NF4_BLOCK)
    scale = grouped.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12)
    code = torch.tensor(NF4, dtype=torch.float32, device=weight_OI.device)
    middles = (code[1:] + code[:-1]) / 2
    return _ungrouped(code[torch.bucketize(grouped / scale, middles)] * scale, shape)


def q4_0(weight_OI: Tensor) -> Tensor:
    """Rounds as GGUF's Q4_0: blocks of 32, scale d = m / -8 for the value m of largest magnitude, code = floor(x / d + 8.5)
    up to 15."""
    grouped, shape = _grouped(weight_OI, Q4_BLOCK)
    largest = grouped.gather(-1, grouped.abs().argmax(dim=-1, keepdim=True))
    scale = (largest / -8.0).half().float()  # the format stores d in half precision
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1.0 / torch.where(scale == 0, torch.ones_like(scale), scale))
    code = (grouped * inverse + 8.5).floor().clamp(0, 15)
    return _ungrouped((code - 8.0) * scale, shape)


ROUNDINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "int8_channel": lambda w: round_to_nearest(w, 8),
    "int8_group": lambda w: round_to_nearest(w, 8, GROUP),
    "int4_channel": lambda w: round_to_nearest(w, 4),
    "int4_group": lambda w: round_to_nearest(w, 4, GROUP),
    "nf4": nf4,
    "q4_0": q4_0,
}
"""Format -> function from a matrix [out, in] in float32 to its rounded values."""


@torch.no_grad()
def compress(model: nn.Module, to_grid: Callable[[Tensor], Tensor]) -> None:
    """Replaces the matrix of every linear layer but the output head, in place."""
    for weight, transposed in linear_weights(model):
        weight.copy_(rounded_matrix(weight, to_grid, transposed=transposed))


def rounded_matrix(weight: Tensor, to_grid: Callable[[Tensor], Tensor], *, transposed: bool = False) -> Tensor:
    """Returns the matrix on the grid, in its own dtype. transposed: it is stored as [in, out]."""
    matrix = weight.float().T if transposed else weight.float()
    changed = to_grid(matrix.contiguous())
    return (changed.T if transposed else changed).to(weight.dtype)


def linear_weights(model: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """Returns the matrices of all linear layers except the output head, and whether each is stored as [in, out] (GPT-2)."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    for module in model.modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            yield module.weight, False
        elif type(module).__name__ == "Conv1D":
            assert isinstance(module.weight, Tensor)
            yield module.weight, True


def _grouped(weight_OI: Tensor, group: int | None) -> tuple[Tensor, torch.Size]:
    """Returns rows, or blocks of a row padded with zeros to whole groups, and the shape to restore."""
    if group is None:
        return weight_OI, weight_OI.shape
    rows, columns = weight_OI.shape
    padded = torch.nn.functional.pad(weight_OI, (0, math.ceil(columns / group) * group - columns))
    return padded.view(rows, -1, group), weight_OI.shape


def _ungrouped(grouped: Tensor, shape: torch.Size) -> Tensor:
    return grouped.reshape(shape[0], -1)[:, : shape[1]] if grouped.ndim == 3 else grouped
