"""A stretch of the forward pass: some blocks only, and for a moment with other weights in them.

A loss on a hidden state needs nothing above it, and a frozen and a trained copy of a model that differ in a few blocks have all
blocks below in common. The model is called as it is, whatever wraps it (PEFT, DDP, FSDP2) and whatever each of its blocks is
given (masks and positions differ between the layers of some): the blocks that are not needed hand on what they are told to.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.data.encode import Tokens
from expunge.data.places import Places
from expunge.models.blocks import blocks_of
from expunge.models.load import causal_model
from expunge.models.logprobs import labelled_hidden

CHUNK = 2**22
"""Elements that are held twice while weights are exchanged."""


class PartialForward(NamedTuple):
    """What a stretch of blocks began with and what it gave."""

    entering: Any
    """What the block before the first one gave, in the form in which the model hands it on; nothing before block 0."""
    hidden_BTD: Tensor
    """The residual stream after the last block."""


def partial_forward(model: nn.Module, tokens: Tokens, first: int, last: int, entering: Any = None) -> PartialForward:
    """The residual stream after block `last`; no later block is computed, and no logits.

    first     with `last` the blocks that are computed in every case
    entering  `PartialForward.entering` of an earlier call on the same tokens with the same `first`: the blocks before it are then
              not computed again, and no gradient reaches them that did not in that call

    Gradients: those of the blocks that require them, as in a full pass.
    """
    places = blocks_of(model)
    blocks = [places.module(places.block(i)) for i in range(places.count)]
    last = last % places.count
    given: dict[int, Any] = {} if entering is None else {first - 1: entering}
    with ExitStack() as stack:
        for i in {first - 1, last} - {-1} - given.keys():
            stack.callback(blocks[i].register_forward_hook(_keeping(given, i)).remove)
        if entering is not None:
            stack.enter_context(_handing_on(blocks[:first], given, first - 1))
        stack.enter_context(_handing_on(blocks[last + 1 :], given, last))
        labelled_hidden(model, replace(tokens, places=Places(*tokens.labels_BT.new_empty(2, 0))))
    output = given[last]
    return PartialForward(given.get(first - 1), output[0] if isinstance(output, tuple) else output)


def _keeping(given: dict[int, Any], i: int) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_: nn.Module, inputs: Any, output: Any) -> None:
        given[i] = output

    return keep


@contextmanager
def _handing_on(blocks: Sequence[nn.Module], given: Mapping[int, Any], i: int) -> Iterator[None]:
    """In the place of these blocks' own computation: what block i gave."""

    def forward(*_: Any, **__: Any) -> Any:
        return given[i]

    own = [vars(block).get("forward") for block in blocks]  # an instance has its own where something wraps it already
    try:
        for block in blocks:
            block.forward = forward
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            if before is None:
                vars(block).pop("forward", None)
            else:
                block.forward = before


@contextmanager
def exchanged(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """While it lasts the model computes with `weights` (name in the transformers model -> tensor), which hold its own meanwhile.

    Contents are exchanged a piece at a time, so there is never a third copy, and the shards of a sharded model stay where they
    are. Not between a forward pass and its backward pass.
    """
    parameters = dict(causal_model(model).named_parameters())
    pairs = [(_local(parameters[name]), _local(tensor)) for name, tensor in weights.items()]
    _exchange(pairs)
    try:
        yield
    finally:
        _exchange(pairs)


def _exchange(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for one, other in pairs:
            for a, b in zip(one.view(-1).split(CHUNK), other.view(-1).split(CHUNK), strict=True):
                held = a.clone()
                a.copy_(b)
                b.copy_(held)


def _local(tensor: Tensor) -> Tensor:
    """The storage that this process has of it, as one that can be written."""
    from torch.distributed.tensor import DTensor

    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
    if not local.is_contiguous():
        raise ValueError("a weight with strides cannot be exchanged in place")
    return local
