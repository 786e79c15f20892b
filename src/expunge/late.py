"""Imports the public names of a package on first use, since torch alone takes seconds to import."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def late(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a package; homes: public name -> module that defines it."""

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with garbage_kept():
            return getattr(import_module(homes[name]), name)

    return __getattr__


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Context manager in which Python looks for no garbage: the half million objects of torch and transformers are all kept, and
    looking through them again and again takes up to a second in all."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
