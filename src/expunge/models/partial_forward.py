"""Runs only some blocks of a model, and temporarily swaps weights.

A loss on a hidden state needs no later block, and a frozen and a trained copy of a model that differ in a few blocks share all
blocks below. The model itself is called, in any wrapper (PEFT, DDP, FSDP2) and with its own masks and positions, which differ
between layers in some architectures; blocks that are not needed return a given value instead of computing one.
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
"""Number of elements copied at a time when weights are swapped."""


class PartialForward(NamedTuple):
    """The result of running some of the blocks."""

    entering: Any
    """The output of the block before the first one, in the form in which the model passes it on; None for block 0."""
    hidden_BTD: Tensor
    """The residual stream after the last block."""


def partial_forward(model: nn.Module, tokens: Tokens, first: int, last: int, entering: Any = None) -> PartialForward:
    """Computes the residual stream after block `last`; later blocks and logits are not computed.

    first     first of the blocks that are always computed, up to `last`
    entering  `PartialForward.entering` of an earlier call on the same tokens with the same `first`: the blocks before `first` are
              then not computed again, and get gradients only if they did in that call

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
    """Makes these blocks return what block i returned instead of computing."""

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
    """Context manager in which the model computes with `weights` (name in the transformers model -> tensor); these hold the
    model's own weights meanwhile.

    Contents are swapped in chunks, so that there is no third copy, and the shards of a sharded model stay where they are. Must
    not be used between a forward pass and its backward pass.
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
    """Returns this process's shard of a tensor, for writing."""
    from torch.distributed.tensor import DTensor

    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
    if not local.is_contiguous():
        raise ValueError("a weight with strides cannot be exchanged in place")
    return local
