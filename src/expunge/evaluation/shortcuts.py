"""Tests which optimizations leave a model's values unchanged: padded batches, shared prompts, decoding with a cache.

Optimizations that are correct for most architectures silently change the values of some: recurrent states run through padding, a
cache may hold more than keys and values, positions may be scaled by the longest row of a batch. Therefore each one is compared
once per model with plain passes over short single rows, and used only if it gives the same logits.
`tests/evaluation/test_shortcuts.py` compares scores and texts for the supported architectures.

Shape suffixes: B rows, T positions, N positions where logits are computed, V vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from expunge.data.encode import Encoded, collate
from expunge.evaluation.row_cache import RowCache
from expunge.models.attention_blocks import Packed
from expunge.models.hooks import is_hooked
from expunge.models.limits import embedded, scaled_from, text_config
from expunge.models.load import causal_model
from expunge.models.logprobs import cached_logits, logits_at
from expunge.models.packed_attention import packed
from expunge.models.reading import alike, alone, check_reading, spread

Ids = tuple[int, ...]


class Shortcuts(NamedTuple):
    """The optimizations that change no value of one model."""

    padding: bool
    """Batches may have rows of different length, with padding after their end."""
    left_padding: bool
    """The same with padding before their beginning, as generation needs it."""
    tree: bool
    """The ends of several answers may follow their common beginning in one row, separated by an attention mask."""
    cache: bool
    """A pass may continue from the key-value cache of a beginning, repeated for several answers."""
    stepwise: bool
    """Decoding may go token by token with a preallocated key-value cache."""
    packed: bool
    """Many questions may stand in one row without padding, with an attention function of this library."""
    ragged: bool
    """Decoding may go on in rows of different length, without padding."""
    longest: int | None = None
    """Longer rows are computed alone, since their length changes how positions are scaled for the whole batch."""

    @property
    def shares(self) -> bool:
        """Returns whether answers to one question may be computed together, so that their common beginning is read once."""
        return self.packed or self.tree or self.cache


_found: "WeakKeyDictionary[nn.Module, Shortcuts]" = WeakKeyDictionary()

HOOKED = Shortcuts(padding=True, left_padding=True, tree=False, cache=False, stepwise=False, packed=False, ragged=False)
"""For models with hooks, such as guards, which need real rows and positions."""


def shortcuts_of(model: nn.Module) -> Shortcuts:
    """Returns the shortcuts of a model, measured once with a few passes over a few tokens."""
    inner = causal_model(model)
    if is_hooked(model):
        return HOOKED._replace(longest=scaled_from(model))
    if inner not in _found:
        training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                _found[inner] = _measured(model)
        finally:
            model.train(training)
    return _found[inner]


def sees(owner_BT: Tensor, model: nn.Module) -> Tensor:
    """Returns an attention mask [B, 1, T, T]: each position attends to earlier ones with the same owner or with owner 0, the
    common beginning."""
    sees_BTT = ((owner_BT[:, :, None] == owner_BT[:, None, :]) | (owner_BT[:, None, :] == 0)).tril()
    inner = causal_model(model)
    if inner.config._attn_implementation == "eager":
        low = torch.finfo(inner.dtype).min
        mask_BTT = torch.zeros(sees_BTT.shape, dtype=inner.dtype, device=owner_BT.device).masked_fill_(~sees_BTT, low)
        return mask_BTT[:, None]
    return sees_BTT[:, None]


class Slots(DynamicLayer):
    """Keys and values of one layer, in preallocated tensors for at most `capacity` tokens a row."""

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity, self.length = capacity, 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:2], self.capacity)
            self._keys = key_states.new_empty((*shape, key_states.shape[-1]))
            self._values = value_states.new_empty((*shape, value_states.shape[-1]))
        begin, self.length = self.length, self.length + key_states.shape[-2]
        self._keys[:, :, begin : self.length] = key_states
        self._values[:, :, begin : self.length] = value_states
        self.keys, self.values = self._keys[:, :, : self.length], self._values[:, :, : self.length]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows."""
        if self.is_initialized:
            self._keys, self._values = self._keys[indices], self._values[indices]
            self.keys, self.values = self._keys[:, :, : self.length], self._values[:, :, : self.length]


def empty_slots(capacity: int) -> Cache:
    """Makes a cache for rows of at most `capacity` tokens, including padding."""
    return Cache(layer_class_to_replicate=partial(Slots, capacity))  # type: ignore[arg-type]


def _measured(model: nn.Module) -> Shortcuts:
    words, device = embedded(model), causal_model(model).device
    check_reading(model)
    rows = [tuple(1 + (7 * i * i + 11 * i + 29 * r) % (words - 1) for i in range(n)) for r, n in enumerate((9, 6, 4))]
    plain_rows = [alone(model, row, device) for row in rows]
    tolerance = spread(plain_rows)

    def same(attempt: Callable[[], list[Tensor]], expected: Sequence[Tensor]) -> bool:
        try:
            found = attempt()
        except Exception:  # an architecture may fail in any way where it was not made for this; then it is not done
            return False
        return all(alike(a, b, tolerance) for a, b in zip(found, expected, strict=True))

    shared = rows[0][:5]
    ends = (rows[0][5:], rows[1][:3])
    followed = [plain_rows[0][len(shared) :], alone(model, shared + ends[1], device)[len(shared) :]]
    plain = _plain(model)
    left = same(lambda: _padded(model, rows, "left"), plain_rows)
    packable = plain and _packable(model)
    late = [plain_rows[0][-4:], plain_rows[1][-4:-2], plain_rows[2][-4:]]
    return Shortcuts(
        padding=same(lambda: _padded(model, rows, "right"), plain_rows),
        left_padding=left,
        tree=_masked(model) and same(lambda: _in_one_row(model, shared, ends), followed),
        cache=plain and left and same(lambda: _repeated(model, shared, ends), followed),
        stepwise=plain and left and same(lambda: _stepwise(model, rows), plain_rows),
        packed=packable and same(lambda: _in_a_pack(model, rows, shared, ends), [*plain_rows, *followed]),
        ragged=packable and left and same(lambda: _in_rows(model, rows), late),
        longest=scaled_from(model),
    )


def _plain(model: nn.Module) -> bool:
    """Returns whether the cache consists of keys and values only: no state of a recurrent layer, no chunked attention."""
    layers = DynamicCache(config=causal_model(model).config).layers
    chunked = getattr(text_config(model), "attention_chunk_size", None)
    return not chunked and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _masked(model: nn.Module) -> bool:
    """Returns whether the model takes a custom attention mask; layers with a sliding window would lose their own."""
    config = causal_model(model).config
    layers = DynamicCache(config=config).layers
    return all(type(layer) is DynamicLayer for layer in layers) and config._attn_implementation in ("sdpa", "eager")


def _packable(model: nn.Module) -> bool:
    """Returns whether attention may be replaced by the packed kernel: on a CPU, where it stands for that of sdpa."""
    return causal_model(model).device.type == "cpu" and _masked(model) and text_config(model)._attn_implementation == "sdpa"


def _padded(model: nn.Module, rows: Sequence[Ids], side: Any) -> list[Tensor]:
    tokens = collate([Encoded(row, len(row), False) for row in rows], 0, side=side).to(causal_model(model).device)
    index_N = tokens.attention_mask_BT.flatten().nonzero()[:, 0]
    logits_NV = logits_at(model, tokens.input_ids_BT, tokens.attention_mask_BT, index_N)
    return list(logits_NV.split([len(row) for row in rows]))


def _in_one_row(model: nn.Module, shared: Ids, ends: Sequence[Ids]) -> list[Tensor]:
    device = causal_model(model).device
    ids = (*shared, *(token for end in ends for token in end))
    owners = [*[0] * len(shared), *(a for a, end in enumerate(ends, start=1) for _ in end)]
    depths = [*range(len(shared)), *(len(shared) + t for end in ends for t in range(len(end)))]
    ids_BT, owner_BT, position_BT = (torch.tensor([values], device=device) for values in (ids, owners, depths))
    index_N = torch.arange(len(shared), len(ids), device=device)
    logits_NV = logits_at(model, ids_BT, sees(owner_BT, model), index_N, position_BT)
    return list(logits_NV.split([len(end) for end in ends]))


def _in_a_pack(model: nn.Module, rows: Sequence[Ids], shared: Ids, ends: Sequence[Ids]) -> list[Tensor]:
    """Reads rows, and a beginning with ends that see it, not each other; the last of all stands behind the first of them."""
    start = sum(map(len, rows))
    begun, more = range(start, start + len(shared)), ends[0][:1]
    first = range(begun.stop, begun.stop + 1)
    parts = [*rows, shared, more, *ends[1:], ends[0][1:]]
    before = [*[()] * len(rows), (), *[(begun,)] * len(ends), (begun, first)]
    depths = [sum(map(len, seen)) + t for part, seen in zip(parts, before, strict=True) for t in range(len(part))]
    ids_1T, position_1T = (torch.tensor([values]) for values in ([token for part in parts for token in part], depths))
    with packed(model, Packed([*map(len, parts)], before)):
        logits_TV = logits_at(model, ids_1T, None, torch.arange(len(depths)), position_1T)
    *alone, _, begin, others, rest = logits_TV.split([*map(len, parts)])
    return [*alone, torch.cat([begin, rest]), others]


def _in_rows(model: nn.Module, rows: Sequence[Ids]) -> list[Tensor]:
    """Reads the last tokens of three rows in passes of unequal numbers; one token is forgotten again, and one row."""
    cache = RowCache(model, len(rows), max(map(len, rows)))
    a, b, c = rows
    first_BV = cache.begin([row[:-3] for row in rows])
    second_NV = cache.go_on([a[-3:-1], (b[-3], b[-3]), c[-3:-2]])
    cache.keep([2, 1, 1])
    cache.only([0, 2])
    third_NV = cache.go_on([a[-1:], c[-2:]])
    cache.keep([1, 2])
    return [
        torch.cat([first_BV[:1], second_NV[:2], third_NV[:1]]),
        torch.cat([first_BV[1:2], second_NV[2:3]]),
        torch.cat([first_BV[2:], second_NV[4:], third_NV[1:]]),
    ]


def _repeated(model: nn.Module, shared: Ids, ends: Sequence[Ids]) -> list[Tensor]:
    device = causal_model(model).device
    beginnings = collate([Encoded(shared[1:], 1, False), Encoded(shared, 1, False)], 0, side="left").to(device)
    none_N = torch.tensor([0], device=device)
    first = cached_logits(model, beginnings.input_ids_BT, beginnings.attention_mask_BT, none_N)
    parents_R = torch.tensor([1] * len(ends), device=device)
    tails = collate([Encoded(end, len(end), False) for end in ends], 0).to(device)
    first.cache.reorder_cache(parents_R)  # type: ignore[arg-type]
    mask_RS = torch.cat([beginnings.attention_mask_BT[parents_R], tails.attention_mask_BT], dim=1)
    every_N = tails.attention_mask_BT.flatten().nonzero()[:, 0]
    logits_NV = cached_logits(model, tails.input_ids_BT, mask_RS, every_N, first.cache).logits_NV
    return list(logits_NV.split([len(end) for end in ends]))


def _stepwise(model: nn.Module, rows: Sequence[Ids]) -> list[Tensor]:
    """Decodes the last three tokens of each row one by one, after one pass over the tokens before them."""
    device, steps = causal_model(model).device, 3
    beginnings = collate([Encoded(row[:-steps], 1, False) for row in rows], 0, side="left").to(device)
    width = beginnings.input_ids_BT.shape[1]
    mask_BS = torch.cat([beginnings.attention_mask_BT, torch.ones(len(rows), steps, dtype=torch.long, device=device)], dim=1)
    index_N = beginnings.attention_mask_BT.flatten().nonzero()[:, 0]
    cache = empty_slots(width + steps)
    first = cached_logits(model, beginnings.input_ids_BT, beginnings.attention_mask_BT, index_N, cache)
    begun = list(first.logits_NV.split([len(row) - steps for row in rows]))
    every_N = torch.arange(len(rows), device=device)
    for step in range(steps):
        ids_B1 = torch.tensor([[row[len(row) - steps + step]] for row in rows], device=device)
        logits_BV = cached_logits(model, ids_B1, mask_BS[:, : width + step + 1], every_N, first.cache).logits_NV
        begun = [torch.cat([before, logits_BV[b : b + 1]]) for b, before in enumerate(begun)]
    return begun
