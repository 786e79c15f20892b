"""Selects the tokens whose activations are read, and runs one forward pass over many texts that passes these values to
observers.

Shape suffixes: B rows, T positions, F features of a site (neurons of an MLP), N chosen tokens.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from expunge.data.encode import Encoded, Encoder, collate, length_batches, warn_of_cut
from expunge.data.example import Example
from expunge.models.hooks import Site, edit
from expunge.models.load import causal_model
from expunge.models.logprobs import output_head, position_ids
from expunge.models.token_policy import TokenPolicy

TILE = 2**17
"""Number of values reduced at once on a CPU, small enough for its cache (1 MB of float64)."""


class Span(NamedTuple):
    """One text of a probe: positions start..stop-1 are read, and nothing is computed beyond them."""

    ids: tuple[int, ...]
    start: int
    stop: int


class Chosen(NamedTuple):
    """The chosen tokens of one batch, in order of rows and positions; with pooling one per row, which is its last."""

    span_N: Tensor
    """Index of each token's span, among all spans."""
    position_N: Tensor
    """Position of each token in its span's ids."""


Observer = Callable[[Tensor, slice], None]
"""A function of the values [n, F] of some chosen tokens at one site, and of which of the batch's chosen tokens they are."""


def spans(examples: Sequence[Example], encoder: Encoder, tokens: TokenPolicy, *, skip_start: bool = False) -> list[Span]:
    """Returns one span per example; warns if texts are cut off.

    skip_start  leave out the start token, whose activations are very large and would count more in shorter texts
    """
    start_id = encoder.tokenizer.bos_token_id
    found, rows = [], encoder.encode_many(examples)
    if tokens != "last_prompt":
        warn_of_cut(rows, encoder.max_length)
    for example, row in zip(examples, rows, strict=True):
        span = _span(row, example.prompt is None, tokens)
        if skip_start and span.start == 0 and row.ids[0] == start_id and span.stop > 1:
            span = span._replace(start=1)
        found.append(span)
    return found


def _span(row: Encoded, raw: bool, tokens: TokenPolicy) -> Span:
    if tokens == "all":
        return Span(row.ids, 0, len(row.ids))
    if tokens == "last_prompt":
        stop = len(row.ids) if raw else row.answer_start
        return Span(row.ids[:stop], stop - 1, stop)
    stop = len(row.ids) - row.has_end
    return Span(row.ids[:stop], row.answer_start, stop)


def visit(
    model: nn.Module,
    texts: Sequence[Span],
    pad_id: int,
    observers: Callable[[Chosen], Mapping[Site, Observer]],
    *,
    pooled: bool = False,
    max_tokens: int = 4096,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Runs one forward pass over `texts` without gradient, cache or logits.

    For each batch, `observers(chosen)` gives the function that is called at each site with the values of the chosen tokens,
    during the pass, so that activations are freed layer by layer. With `pooled`, the values are means over each text's chosen
    tokens. The batches are the same for any number of processes; this process (`rank` of `world`) computes every world-th.
    """
    inner = causal_model(model)
    batches = length_batches([len(text.ids) for text in texts], max_tokens, 256)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _no_logits(model):
            for batch in batches[rank::world]:
                tokens = collate([Encoded(texts[i].ids, 1, False) for i in batch], pad_id).to(inner.device)
                read = _Reader([texts[i] for i in batch], batch, tokens.input_ids_BT.shape, inner.device, pooled)
                seen = {site: partial(read, observer) for site, observer in observers(read.chosen).items()}
                with edit(model, seen):
                    _forward(inner, tokens.input_ids_BT, tokens.attention_mask_BT)
    finally:
        model.train(was_training)


@dataclass
class _Reader:
    """Passes the chosen tokens of one batch to an observer in tiles, and returns the tensor unchanged."""

    texts: Sequence[Span]
    batch: Sequence[int]
    shape: torch.Size
    device: torch.device
    pooled: bool
    chosen: Chosen = field(init=False)

    def __post_init__(self) -> None:
        lengths = torch.tensor([text.stop - text.start for text in self.texts])
        row_N = torch.repeat_interleave(torch.arange(len(self.texts)), lengths)
        position_N = torch.cat([torch.arange(text.start, text.stop) for text in self.texts])
        self.chosen = Chosen(torch.tensor(self.batch)[row_N], position_N)
        if self.pooled:
            self.chosen = Chosen(torch.tensor(self.batch), torch.tensor([text.stop - 1 for text in self.texts]))
        self._row_N, self._lengths = row_N, lengths
        self._whole = len(position_N) == self.shape.numel()
        self._flat_N = (row_N * self.shape[1] + position_N).to(self.device)

    def __call__(self, observer: Observer, values_BTF: Tensor) -> Tensor:
        for values_NF, part in self._means(values_BTF) if self.pooled else self._tiles(values_BTF):
            observer(values_NF, part)
        return values_BTF

    def _tiles(self, values_BTF: Tensor) -> Iterator[tuple[Tensor, slice]]:
        values_NF = values_BTF.flatten(0, 1)
        for part in tiles(len(self._flat_N), values_NF.shape[1], values_NF.device):
            here = self._flat_N[part].to(values_NF.device)
            yield values_NF[part] if self._whole else values_NF.index_select(0, here), part

    def _means(self, values_BTF: Tensor) -> Iterator[tuple[Tensor, slice]]:
        device = values_BTF.device
        sums_BF = torch.zeros(len(self.texts), values_BTF.shape[2], device=device)
        for values_NF, part in self._tiles(values_BTF):
            sums_BF.index_add_(0, self._row_N[part].to(device), values_NF.float())
        means_BF = sums_BF / self._lengths.to(device)[:, None]
        for part in tiles(means_BF.shape[0], means_BF.shape[1], device):
            yield means_BF[part], part


def tiles(count: int, features: int, device: torch.device) -> Iterator[slice]:
    """Yields consecutive slices of `count` rows, small enough for a CPU's cache; larger ones on a GPU."""
    size = max(24, TILE // features) if device.type == "cpu" else max(256, 2**26 // features)
    return (slice(i, min(i + size, count)) for i in range(0, count, size))


@contextmanager
def _no_logits(model: nn.Module) -> Iterator[None]:
    """Context manager in which the output head gets no rows and costs nothing."""
    handle = output_head(model).register_forward_pre_hook(lambda _, inputs: (inputs[0][..., :0, :], *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def _forward(inner: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> None:
    takes = inspect.signature(inner.forward).parameters  # BLOOM counts positions by itself
    positions = {"position_ids": position_ids(attention_mask_BT)} if "position_ids" in takes else {}
    inner(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False, **positions)
