"""Reads and changes activations: context managers over torch hooks, which are removed on exit, even after an error.

Shape suffixes: B rows, T positions, D the width of whatever is read (hidden width, or neurons of an MLP).
Under gradient checkpointing stay in the context until the backward pass is done, since blocks then run a second time.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from expunge.errors import ExpungeError, nearest
from expunge.models.architecture import ARCHITECTURES
from expunge.models.load import causal_model

Kind = Literal["input", "output"]
Edit = Callable[[Tensor], Tensor]
Key = TypeVar("Key")
Place = TypeVar("Place", bound="str | Site")


@dataclass(frozen=True)
class Site:
    """A tensor to read or change: the input or the output of a module."""

    name: str
    """Name of the module for `get_submodule` of the transformers model, also if the model is wrapped."""
    kind: Kind = "output"
    part: tuple[int, int] | None = None
    """Start and stop of the features, where one matrix holds two roles (Phi-3's gate and up)."""

    def of(self, whole: Tensor) -> Tensor:
        """Returns these features of a tensor."""
        return whole if self.part is None else whole[..., self.part[0] : self.part[1]]


@contextmanager
def capture(model: nn.Module, sites: Mapping[Key, Site | Kind]) -> Iterator[dict[Key, Tensor]]:
    """Context manager that yields a dictionary, key -> tensor [B, T, D] at that site, filled by a forward pass.

    With `"input"` or `"output"` instead of a site, the key names the module: `capture(model, {"model.layers.3": "output"})`.
    The tensors are those that the model computes with, including gradients, from the latest call (in generation: the latest
    token). A capture inside an `edit` of the same site sees the edited value. A site that is not reached leaves no entry.
    """
    captured: dict[Key, Tensor] = {}
    with ExitStack() as stack:
        for key, site in sites.items():
            resolved = site if isinstance(site, Site) else Site(str(key), site)
            stack.enter_context(_hooked(model, resolved, partial(_keep, captured, key, resolved)))
        yield captured


@contextmanager
def edit(model: nn.Module, edits: Mapping[Place, Edit]) -> Iterator[None]:
    """Context manager in which the model computes with `function(tensor)` [B, T, D] instead of the tensor at each site.

    A name instead of a site means the output of that module. With a key-value cache, T is the prompt's length at first, then 1.
    """
    with ExitStack() as stack:
        for key, function in edits.items():
            site = key if isinstance(key, Site) else Site(key)
            stack.enter_context(_hooked(model, site, partial(_edited, function, site)))
        yield


def _keep(captured: dict[Key, Tensor], key: Key, site: Site, whole: Tensor) -> Tensor:
    captured[key] = site.of(whole)
    # the model goes on with a copy of an output, since some blocks add to it in place (Falcon: attention's output to its MLP's)
    return whole.clone() if site.kind == "output" else whole


def _edited(function: Edit, site: Site, whole: Tensor) -> Tensor:
    before = whole if site.part is None else site.of(whole)
    after = function(before)
    if after is not before and (after.shape != before.shape or after.dtype != before.dtype):
        raise ValueError(f"the edit of {site.name} made {after.dtype} {list(after.shape)} of {before.dtype} {list(before.shape)}")
    if site.part is None:
        return after
    start, stop = site.part
    return torch.cat([whole[..., :start], after, whole[..., stop:]], dim=-1)


@contextmanager
def _hooked(model: nn.Module, site: Site, function: Edit) -> Iterator[None]:
    """Registers a hook that applies `function` to the tensor at a site."""
    root = causal_model(model)
    module = resolve(root, site.name)
    parent = root.get_submodule(site.name.rpartition(".")[0])
    leading: list[torch.Size] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leading[:] = [x.shape[:2] for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim == 3][:1]

    def apply(tensor: Any) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise ExpungeError(f"the {site.kind} of {site.name} is a {type(tensor).__name__}, not a tensor; choose another site")
        if tensor.ndim == 3:
            return function(tensor)
        if tensor.ndim == 2 and leading and leading[0].numel() == tensor.shape[0]:
            return function(tensor.view(*leading[0], -1)).reshape(tensor.shape)
        raise ExpungeError(f"the {site.kind} of {site.name} is {list(tensor.shape)}, not rows by positions by features")

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (apply(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": apply(kwargs["hidden_states"])}

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # blocks of transformers 5 give a tensor, some a tuple
        return (apply(output[0]), *output[1:]) if isinstance(output, tuple) else apply(output)

    known = ARCHITECTURES.get(root.config.model_type)
    # Only where blocks join rows and positions is it noted what came in: all others are spared a hook a layer at each token.
    handles = [parent.register_forward_pre_hook(note, with_kwargs=True)] if known is not None and known.flattens else []
    try:
        if site.kind == "input":
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_hooked(model: nn.Module) -> bool:
    """Returns whether there are hooks in the model, such as those of a guard, which needs real rows and prompts."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def resolve(root: nn.Module, name: str) -> nn.Module:
    """Returns the submodule. Raises ExpungeError, with the nearest name, if there is none."""
    try:
        return root.get_submodule(name)
    except AttributeError:
        names = (known for known, _ in root.named_modules())
        raise ExpungeError(f"{type(root).__name__} has no module '{name}'{nearest(name, names)}") from None
