"""A pretended accelerator: tensors that compute on the processor, and behave as a GPU's where the two meet.

A program that is run on it fails where it would fail on a GPU: an operation on tensors of both devices, a tensor of the
processor as an index. What would make it wait for a GPU is counted, with the place that asked: values that are read back (`item`,
`tolist`, `float`, `bool`, `.cpu()`), and results whose size depends on values (`nonzero`, a mask as an index, `bincount`).

torch keeps one device type free for backends of others. It is registered for the whole process, so tests run this in one of its
own. A tensor without dimensions may be of the processor, as on a GPU.
"""

import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
backend_registration._setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)

SIZED_BY_VALUES = {"nonzero", "masked_select", "bincount", "unique_consecutive", "_unique2", "repeat_interleave", "equal"}
MOVES = {"_to_copy", "to", "copy_", "copy"}

waits: Counter[str] = Counter()
"""Place in expunge -> how often it would have waited; the waits of other libraries are under their own files."""


class Held(torch.Tensor):
    """A tensor on the pretended device; `held` is where its values are."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Held":
        tensor: Held = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return _run(func, args, dict(kwargs or {}))

    def tolist(self) -> Any:
        waits[f"{_place()} tolist"] += 1
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert a tensor of the device to numpy; copy it to the processor first")


class _Factories(TorchDispatchMode):
    """Operations without a tensor that make one on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _Values(TorchFunctionMode):
    """`torch.tensor(values, device=...)` goes past dispatch."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        given = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_here(given.get("device")):
            where = given.pop("device")
            return func(*args, **given).to(where)
        return func(*args, **given)


@contextmanager
def pretending() -> Iterator[Counter[str]]:
    """While it lasts, the device is there."""
    waits.clear()
    with _Factories(), _Values():
        yield waits


def _is_here(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.partition("::")[2]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, Held)]
    others = [tensor for tensor in tensors if not isinstance(tensor, Held) and tensor.ndim]
    if here and others and name not in MOVES:
        shapes = [list(tensor.shape) for tensor in others]
        raise RuntimeError(f"{name}: tensors of the processor of the shapes {shapes} among those of the device")
    wanted = next((leaf for leaf in (kwargs.get("device"), *args) if isinstance(leaf, torch.device)), None)
    if here:
        _count(name, args, wanted)
    out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    stays = bool(here) if wanted is None else _is_here(wanted)
    if name == "copy_":
        stays = isinstance(args[0], Held)
    if not stays:
        return out
    with torch.inference_mode(any(tensor.is_inference() for tensor in here) if here else torch.is_inference_mode_enabled()):
        wrapped = tree_map(lambda leaf: Held(leaf) if isinstance(leaf, torch.Tensor) else leaf, out)
    if not here:  # new on the device, or come from the processor
        return wrapped
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _held(leaf: Any) -> Any:
    """As the processor computes it."""
    if isinstance(leaf, torch.device):
        return torch.device("cpu")
    return leaf.held if isinstance(leaf, Held) else leaf


def _count(name: str, args: Sequence[Any], wanted: Any) -> None:
    masks = name in ("index", "index_put_", "index_put") and any(
        leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(args[1]) if isinstance(leaf, torch.Tensor)
    )
    back = name in ("_to_copy", "to") and wanted is not None and not _is_here(wanted)
    back = back or (name == "copy_" and not isinstance(args[0], Held))
    if name == "_local_scalar_dense" or name in SIZED_BY_VALUES or masks or back:
        waits[f"{_place()} {name}"] += 1


def _place() -> str:
    """File and function that asked, torch's own left out."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if frame.filename != __file__ and not ("torch" in path.parts and "site-packages" in path.parts):
            return f"{path.stem}.{frame.name}"
    return "torch"
