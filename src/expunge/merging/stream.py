"""Runs the passes of a merge: threads with a few buffers each, and tensors read piece by piece on a fixed grid.

One thread processes all pieces of a tensor, and sums run in the order of the models, so that neither the number of threads nor a
resumed run changes a bit.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch
from torch import Tensor

from expunge.merging.compare import differing
from expunge.merging.plan import Item, Plan
from expunge.merging.positions import Files, pieces
from expunge.merging.reader import Reader
from expunge.merging.storage import Scratch, read_raw

Value = TypeVar("Value")


class Stopped(Exception):
    """Raised because another thread failed; that error is shown."""


class Stream:
    """Open files, one set of buffers per thread, and the progress bar."""

    def __init__(self, plan: Plan, files: Files, threads: int, advance: Callable[[int], None]) -> None:
        self.plan, self.files, self.threads, self.advance = plan, files, threads, advance
        self._own = _Own()
        self._stop = threading.Event()

    @property
    def scratch(self) -> Scratch:
        """Returns the buffers of the calling thread."""
        return self._own.scratch

    def each(self, work: Callable[[Item], Value], items: Sequence[Item]) -> Iterator[tuple[Item, Value]]:
        """Yields results as they are ready, largest tensors first; the first error stops the other threads."""
        before = torch.get_num_threads()
        with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = {pool.submit(work, item): item for item in sorted(items, key=lambda item: -item.read_bytes)}
            try:
                for future in as_completed(futures):
                    if not isinstance(future.exception(), Stopped):
                        yield futures[future], future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                torch.set_num_threads(before)

    def pieces(self, item: Item, *, counted: bool = True) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) over a tensor, and counts its bytes as progress."""
        for start, stop in pieces(item.base.elements):
            if self._stop.is_set():
                raise Stopped
            yield start, stop
            if counted:
                self.advance(item.read_bytes * (stop - start) // item.base.elements)

    def raw(self, item: Item, start: int, stop: int) -> Tensor:
        """Reads a piece of the base as it is on disk."""
        return read_raw(self.files, item.base, start, stop, self.scratch.raw(0, (stop - start) * item.base.itemsize))

    def base(self, item: Item, start: int, stop: int) -> Tensor:
        """Reads a piece of the base in float32; valid until the next one is read, like those of readers."""
        return self.scratch.floats(0, stop - start).copy_(self.raw(item, start, stop))

    def readers(self, item: Item, models: Sequence[int]) -> dict[int, Reader]:
        found = {}
        for i, model in enumerate(models):
            source = item.inputs[model]
            assert source is not None
            found[model] = Reader(self.files, self.scratch, i + 2, source, self.plan.sources[model].label, item.name)
        return found

    def compare(self) -> dict[str, tuple[int, ...]]:
        """Returns name -> models that differ from the base there."""
        merged = [item for item in self.plan.items if item.merged]
        return {
            item.name: found for item, found in self.each(lambda i: differing(self.files, self.scratch, self.plan, i), merged)
        }


class _Own(threading.local):
    """Per-thread data."""

    def __init__(self) -> None:
        self.scratch = Scratch()
