"""Measures time and peak memory of this process."""

from __future__ import annotations

import sys
import time
from typing import NamedTuple


class PeakMemory:
    """Peak of anonymous memory on Linux (mapped weight files belong to the page cache), and of GPU memory."""

    def __init__(self) -> None:
        import torch

        self.peak = 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.sample()

    def sample(self) -> None:
        import torch

        if torch.cuda.is_available():
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())
        else:
            self.peak = max(self.peak, anonymous_bytes())


def anonymous_bytes() -> int:
    """Returns RssAnon of this process in bytes; 0 if the system does not report it."""
    if not sys.platform.startswith("linux"):
        return 0
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


class Spent(NamedTuple):
    wall_seconds: float
    processor_seconds: float
    peak_memory_bytes: int


class Cost:
    """Measures wall time, CPU time and peak memory from its creation on."""

    def __init__(self) -> None:
        self.memory = PeakMemory()
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def so_far(self) -> Spent:
        self.memory.sample()
        return Spent(time.perf_counter() - self._wall, time.process_time() - self._processor, self.memory.peak)
