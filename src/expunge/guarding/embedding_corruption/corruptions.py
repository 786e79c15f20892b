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
"""Number of values that a CPU edits at a time, to fit into its cache."""


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
    drawn = _drawn(kind, count, width, key_N, row_N)
    columns_MC = embeddings_MD[:, :count] if kind.endswith("first_n") else embeddings_MD
    on_cpu = embeddings_MD.device.type == "cpu"
    places = index_N.tolist() if on_cpu else []
    step = max(1, AT_ONCE // columns_MC.shape[1]) if on_cpu else len(index_N)
    offset_N, room = _offsets(key_N, columns_MC.shape[1]), Room()
    for start in range(0, len(index_N), max(1, step)):
        part = slice(start, start + step)
        mine = places[part]
        if mine and mine[-1] - mine[0] == len(mine) - 1:  # positions in a row are edited where they are
            _edit(columns_MC[mine[0] : mine[-1] + 1], kind, count, strength, offset_N[part], row_N[part], drawn, room)
        else:
            taken_NC = columns_MC[index_N[part]]
            _edit(taken_NC, kind, count, strength, offset_N[part], row_N[part], drawn, room)
            columns_MC[index_N[part]] = taken_NC


def _drawn(kind: Kind, count: int, width: int, key_N: Tensor, row_N: Tensor) -> dict[int, Tensor]:
    """Returns for each prompt 1.0 at its drawn coordinates and 0.0 at the others; empty where none are drawn."""
    if kind != "rand_noise_rand_n" or count == width:
        return {}
    found = {}
    for row in row_N.unique().tolist():
        first = key_N[(row_N == row).nonzero()[0, 0]]
        found[row] = torch.zeros(width).index_fill_(0, drawn_coordinates(first, width, count), 1.0).to(key_N.device)
    return found


class Room:
    """Memory for a few rows at a time, used again and again: to get new memory takes longer than to compute what goes into it."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def like(self, name: str, values_NC: Tensor) -> Tensor:
        """Returns float32 numbers [N, C] of any value, on the device of `values_NC`."""
        kept = self._kept.get(name)
        if kept is None or len(kept) < len(values_NC):
            kept = self._kept[name] = torch.empty(values_NC.shape, device=values_NC.device)
        return kept[: len(values_NC)]


def _edit(
    values_NC: Tensor,
    kind: Kind,
    count: int,
    strength: float,
    offset_N: Tensor,
    row_N: Tensor,
    drawn: dict[int, Tensor],
    room: Room,
) -> None:
    """Edits rows of embeddings in place. Products with a mask of numbers are several times as fast as `where`."""
    chosen_NC = None
    if drawn:
        rows = row_N.tolist()
        chosen_NC = drawn[rows[0]] if rows[0] == rows[-1] else torch.stack([drawn[row] for row in rows])
    elif count < values_NC.shape[1]:
        keys_NC = values_NC.detach().float()
        by_size = kind not in ("add_value_least_k", "sub_value_top_k")
        keys_NC = torch.abs(keys_NC, out=room.like("sizes", keys_NC)) if by_size else keys_NC
        chosen_NC = extreme(keys_NC, count, room, least=kind == "add_value_least_k", positive=by_size)
    if "noise" in kind:
        noise_NC = _draws(offset_N, values_NC.shape[1], out=room.like("noise", values_NC))
        if chosen_NC is not None and values_NC.dtype == torch.float32 and values_NC.device.type == "cpu":
            values_NC.addcmul_(noise_NC, chosen_NC, value=strength)  # in one pass; rounds like the three below, for 0 and 1
            return
        noise_NC = noise_NC.mul_(strength) if chosen_NC is None else noise_NC.mul_(chosen_NC).mul_(strength)
        if kind.startswith("set"):
            values_NC.copy_(noise_NC)
        else:
            values_NC.add_(noise_NC)
    elif "value" in kind:
        step = strength if kind.startswith("add") else -strength
        values_NC.add_(step if chosen_NC is None else chosen_NC.mul_(step))
    elif chosen_NC is None:
        values_NC.mul_(-1.0) if kind.startswith("flip") else values_NC.zero_()
    else:
        values_NC.mul_(chosen_NC.mul_(-2.0 if kind.startswith("flip") else -1.0).add_(1.0))


def drawn_coordinates(key: Tensor, width: int, count: int) -> Tensor:
    """Draws `count` of `width` coordinates without replacement for a prompt, by the key of its first selected position."""
    generator = torch.Generator().manual_seed(int(key) & (2**62 - 1))
    return torch.randperm(width, generator=generator)[:count]


def extreme(values_ND: Tensor, count: int, room: Room, *, least: bool, positive: bool = False) -> Tensor:
    """Marks the `count` largest or smallest values of each row by 1.0, float32 [N, D]: exactly that many; of equal values the
    first.

    positive  no value is negative: then the order of float32 is that of their bits, which are compared faster
    """
    found_ND = room.like("marks", values_ND)  # numbers at once: to make them of truth values is another pass
    if count == 1:
        return found_ND.zero_().scatter_(1, _first(values_ND, least), 1.0)
    place = count - 1 if least else values_ND.shape[1] - count
    if values_ND.device.type == "cpu":  # NumPy selects with vector instructions, several times as fast as torch's kthvalue
        values = room.like("order", values_ND).copy_(values_ND).numpy()
        values = values.view(np.int32) if positive else values
        values.partition(place, axis=1)
        border_N1 = torch.from_numpy(values[:, place : place + 1].view(np.float32))
    else:
        border_N1 = values_ND.kthvalue(place + 1, dim=1, keepdim=True).values
    torch.le(values_ND, border_N1, out=found_ND) if least else torch.ge(values_ND, border_N1, out=found_ND)
    many_N = found_ND.sum(dim=1) > count
    if bool(many_N.any()):  # equal values at a border
        order = values_ND[many_N].argsort(dim=1, descending=not least, stable=True)[:, :count]
        found_ND[many_N] = torch.zeros_like(found_ND[many_N]).scatter_(1, order, 1.0)
    return found_ND


def _first(values_ND: Tensor, least: bool) -> Tensor:
    """Returns the first place of each row's largest or smallest value, [N, 1]."""
    if values_ND.device.type != "cpu":
        return (values_ND.argmin(dim=1) if least else values_ND.argmax(dim=1))[:, None]
    values = values_ND.numpy()
    return torch.from_numpy(values.argmin(axis=1) if least else values.argmax(axis=1))[:, None]


def noise(key_N: Tensor, count: int) -> Tensor:
    """Draws N(0, 1) for each key, float32 [N, count]: a part of a fixed table, from an offset given by the key."""
    return _draws(_offsets(key_N, count), count)


def _offsets(key_N: Tensor, count: int) -> Tensor:
    """Returns where the draws of each key begin in the table."""
    return (mix(key_N) & (2**62 - 1)) % (TABLE_SIZE - count)


def _draws(offset_N: Tensor, count: int, out: Tensor | None = None) -> Tensor:
    table = _table(offset_N.device)
    return torch.index_select(table.as_strided((TABLE_SIZE - count, count), (1, 1)), 0, offset_N, out=out)


@cache
def _table(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.randn(TABLE_SIZE, generator=torch.Generator().manual_seed(TABLE_SEED)).to(device)
