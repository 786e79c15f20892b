"""Corrupts the embeddings of selected tokens: the 14 edits of the released code, vectorized and independent of the batch.

    name                                     edit of a selected row e                      which coordinates j
    rand_noise_first_n, _rand_n, _top_k      e_j + N(0, strength^2)                        first n, n drawn, n largest |e_j|
    set_rand_noise_first_n                   N(0, strength^2)                              first n
    zero_out_first_n, zero_out_top_k         0                                             first n, n largest |e_j|
    flip_sign_first_n, flip_sign_top_k       -e_j                                          first n, n largest |e_j|
    sub_value_first_n, add_value_first_n     e_j -+ strength                               first n
    sub_value_top_k, add_value_least_k       e_j -+ strength                               n largest e_j, n smallest e_j
    reverse_order, shuffle                   the selected rows of a prompt change places   all

Noise is read from a table of normal draws at an offset that is a hash of (seed, prompt, position), so that a token has the same
noise alone, in a batch, in every call, on a CPU and on a GPU. The released code draws from the global generator at each call, and
its two permutations and `set_rand_noise_first_n` also change tokens and prompts that are not selected.

Shape suffixes: B rows of a batch, T positions, D width, N selected positions in row-major order.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.guarding.embedding_corruption.kinds import PERMUTING, Kind
from expunge.guarding.random_bits import mix

TABLE_SEED, TABLE_SIZE = 20_240_611, 2**22
AT_ONCE = 2**17
"""Number of values edited at a time, to fit into the CPU's cache."""


def corrupt(values_ND: Tensor, kind: Kind, dims: int | None, strength: float, key_N: Tensor, row_N: Tensor) -> Tensor:
    """Returns new values of the selected positions, [N, D] in the dtype of `values_ND`, which is not changed.

    dims      number of coordinates of each row that change, 1 to D; None for all
    strength  standard deviation of the noise, or the number that is added or subtracted, in units of the embeddings
    key_N     int64 hashes of (seed, prompt, position)
    row_N     index of each position's prompt

    Raises ExpungeError if dims is not between 1 and D.
    """
    found_ND = values_ND.clone()
    write(found_ND, torch.arange(len(found_ND), device=found_ND.device), kind, dims, strength, key_N, row_N)
    return found_ND


def write(
    embeddings_MD: Tensor, index_N: Tensor, kind: Kind, dims: int | None, strength: float, key_N: Tensor, row_N: Tensor
) -> None:
    """Applies `corrupt` to the rows index_N of `embeddings_MD`, in place, a few rows at a time; other rows are not changed.

    For the output of an embedding that is not used elsewhere.

    Raises ExpungeError if dims is not between 1 and D.
    """
    width = embeddings_MD.shape[1]
    count = width if dims is None else dims
    if not 1 <= count <= width:
        raise ExpungeError(f"dims {count} is not between 1 and {width}, the width of the model's embeddings")
    if kind in PERMUTING:
        for row in row_N.unique().tolist():
            mine_N = (row_N == row).nonzero()[:, 0]
            order_N = mine_N.flip(0) if kind == "reverse_order" else mine_N[mix(key_N[mine_N]).argsort(stable=True)]
            embeddings_MD[index_N[mine_N]] = embeddings_MD[index_N[order_N]]
        return
    if kind == "rand_noise_rand_n" and count < width:
        for row in row_N.unique().tolist():
            mine_N = (row_N == row).nonzero()[:, 0]
            column_n = drawn_coordinates(key_N[mine_N[0]], width, count).to(index_N.device)
            place = index_N[mine_N][:, None], column_n[None]
            embeddings_MD[place] = _changed(embeddings_MD[place], kind, strength, key_N[mine_N])
        return
    columns = embeddings_MD[:, :count] if kind.endswith("first_n") else embeddings_MD
    rows = max(1, AT_ONCE // columns.shape[1])
    for index, key in zip(index_N.split(rows), key_N.split(rows), strict=True):
        columns[index] = _edited(columns[index], kind, count, strength, key)


def _edited(values_ND: Tensor, kind: Kind, count: int, strength: float, key_N: Tensor) -> Tensor:
    if count == values_ND.shape[1]:
        return _changed(values_ND, kind, strength, key_N)
    keys_ND = values_ND.float() if kind in ("sub_value_top_k", "add_value_least_k") else values_ND.float().abs()
    if kind == "add_value_least_k":
        keys_ND = -keys_ND
    if count == 1:
        where_N1 = keys_ND.argmax(dim=1, keepdim=True)
        return values_ND.scatter(1, where_N1, _changed(values_ND.gather(1, where_N1), kind, strength, key_N))
    return torch.where(largest(keys_ND, count), _changed(values_ND, kind, strength, key_N), values_ND)


def _changed(values_ND: Tensor, kind: Kind, strength: float, key_N: Tensor) -> Tensor:
    if kind.startswith("rand_noise"):
        return (values_ND + strength * noise(key_N, values_ND.shape[1])).to(values_ND.dtype)
    if kind.startswith("set_rand_noise"):
        return (strength * noise(key_N, values_ND.shape[1])).to(values_ND.dtype)
    if kind.startswith("zero_out"):
        return torch.zeros_like(values_ND)
    if kind.startswith("flip_sign"):
        return -values_ND
    return values_ND + (strength if kind.startswith("add") else -strength)


def drawn_coordinates(key: Tensor, width: int, count: int) -> Tensor:
    """Draws `count` of `width` coordinates without replacement for a prompt, by the key of its first selected position."""
    generator = torch.Generator().manual_seed(int(key) & (2**62 - 1))
    return torch.randperm(width, generator=generator)[:count]


def largest(values_ND: Tensor, count: int) -> Tensor:
    """Marks the `count` largest values of each row, bool [N, D]: exactly that many; of equal values the first."""
    place = values_ND.shape[1] - count
    if values_ND.device.type == "cpu":  # NumPy selects with vector instructions, several times as fast as torch's kthvalue
        least_N1 = torch.from_numpy(np.partition(values_ND.detach().numpy(), place, axis=1)[:, place : place + 1])
    else:
        least_N1 = values_ND.kthvalue(place + 1, dim=1, keepdim=True).values
    found_ND = values_ND >= least_N1
    if int(found_ND.count_nonzero()) > count * len(found_ND):  # equal values at a threshold
        many_N = found_ND.sum(dim=1) > count
        order = values_ND[many_N].argsort(dim=1, descending=True, stable=True)[:, :count]
        found_ND[many_N] = torch.zeros_like(found_ND[many_N]).scatter_(1, order, True)
    return found_ND


def noise(key_N: Tensor, count: int) -> Tensor:
    """Draws N(0, 1) for each key, float32 [N, count]: a part of a fixed table, from an offset given by the key."""
    table = _table(key_N.device)
    offset_N = (mix(key_N) & (2**62 - 1)) % (len(table) - count)
    return table.as_strided((len(table) - count, count), (1, 1))[offset_N]


@cache
def _table(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.randn(TABLE_SIZE, generator=torch.Generator().manual_seed(TABLE_SEED)).to(device)
