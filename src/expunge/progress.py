"""Shows the progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Progress:
    """`with Progress("npo", total=60) as progress: progress.advance(1, "loss 1.2")`; silent when `quiet`.

    On a terminal a bar with the time left; in a log a line every `every` seconds, and always the first and the last.
    """

    def __init__(self, title: str, total: int, *, start: int = 0, quiet: bool = False, every: float = 10.0) -> None:
        self.title, self.total, self.done, self.start = title, total, start, start
        self.quiet, self.every = quiet, every
        self._began = self._printed = time.monotonic()
        self._bar: Bar | None = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Rich

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Rich(*columns, console=Console(stderr=True), transient=False)
            self._task = self._bar.add_task(title, total=total, completed=start, note="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        if self._bar:
            self._bar.update(self._task, completed=self.done, note=note)
        elif not self.quiet:
            now = time.monotonic()
            first = self.done == self.start + count
            if first or self.done >= self.total or now - self._printed >= self.every:
                self._printed = now
                left = (now - self._began) / max(self.done - self.start, 1) * max(self.total - self.done, 0)
                print(
                    f"{self.title}: {self.done}/{self.total}, {left:.0f} s left{', ' + note if note else ''}",
                    file=sys.stderr,
                    flush=True,
                )
