"""Finds the k-th largest magnitude of numbers that do not fit into memory, exactly.

Read as integers, the bits of |x| in float32 are ordered like the magnitudes, so that a threshold is found by counting in a
histogram:

    1. a sample gives a window of magnitudes that probably contains the rank,
    2. one pass counts entries above the window and, per bin, entries in it,
    3. if the rank is in the window, its bin is the next window, or the result if a bin is one bit pattern; otherwise, the next
       window is the side that contains it.

One pass usually suffices, and three always do; nothing is sorted, and only one histogram is in memory.
"""

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from expunge.methods.editing.base import Band, Cut

Bits = NDArray[np.uint32]

TOP = 2**31
"""Above the bits of every magnitude."""
BINS = 2**20
SMALL = 2**20
"""Up to this many entries are selected in memory by numpy.partition."""
MARGIN = 0.005
"""Half of the window, as a share of all entries: three times the error of a sample of 65,536. A miss costs one more pass."""


class RankedMagnitude(NamedTuple):
    """The magnitude at a rank."""

    bits: int
    above: int
    """Number of larger entries."""
    equal: int

    @property
    def magnitude(self) -> float:
        return float(np.array(self.bits, np.uint32).view(np.float32))


class Search:
    """Finds one rank (0 is the largest) among `total` magnitudes, pass by pass. Counting is safe from several threads."""

    def __init__(self, rank: int, total: int, sample: Bits) -> None:
        self.rank = rank
        self.found: RankedMagnitude | None = None
        self._lock = threading.Lock()
        if rank >= total:  # the entries that nobody reads are zeros: they equal the base
            self.found = RankedMagnitude(0, total, 0)
            return
        ordered, share = np.sort(sample), 1 - (rank + 0.5) / total
        first, last = int((share - MARGIN) * len(ordered)) - 2, int((share + MARGIN) * len(ordered)) + 2
        self._open(int(ordered[first]) if first >= 0 else 0, int(ordered[last]) + 1 if last < len(ordered) else TOP)

    def _open(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.shift = max(0, (high - low - 1).bit_length() - BINS.bit_length() + 1)
        self.above = 0
        self.bins = np.zeros(((high - low - 1) >> self.shift) + 1, dtype=np.int64)

    def count(self, bits: Bits) -> None:
        """Counts a piece in the current pass."""
        if self.found:
            return
        over = bits >= np.uint32(self.high)
        above = int(np.count_nonzero(over))
        chosen = np.not_equal(bits >= np.uint32(self.low), over, out=over)
        inside = (bits[chosen] - np.uint32(self.low)) >> np.uint32(self.shift)
        with self._lock:
            self.above += above
            np.add.at(self.bins, inside, 1)

    def narrow(self) -> None:
        """Ends a pass and narrows the window."""
        if self.found:
            return
        inside = int(self.bins.sum())
        if self.rank < self.above:
            self._open(self.high, TOP)
        elif self.rank >= self.above + inside:
            self._open(0, self.low)
        else:
            from_top = np.cumsum(self.bins[::-1])
            place = int(np.searchsorted(from_top, self.rank - self.above, side="right"))
            chosen = len(self.bins) - 1 - place
            above, equal = self.above + int(from_top[place] - self.bins[chosen]), int(self.bins[chosen])
            if self.shift == 0:
                self.found = RankedMagnitude(self.low + chosen, above, equal)
                self.bins = np.zeros(0, dtype=np.int64)
            else:
                low = self.low + (chosen << self.shift)
                self._open(low, min(low + (1 << self.shift), self.high))


def magnitude_bits(values: NDArray[np.float32]) -> Bits:
    """Returns |x| as integers in the order of the magnitudes; overwrites its input."""
    bits = values.view(np.uint32)
    return np.bitwise_and(bits, np.uint32(TOP - 1), out=bits)


def select_small(bits: Bits, rank: int) -> RankedMagnitude:
    """Does the same in memory."""
    if rank >= len(bits):
        return RankedMagnitude(0, len(bits), 0)
    value = int(np.partition(bits, len(bits) - 1 - rank)[len(bits) - 1 - rank])
    return RankedMagnitude(value, int(np.count_nonzero(bits > value)), int(np.count_nonzero(bits == value)))


def ranks(band: Band) -> tuple[int, ...]:
    """Returns the ranks of the ends of a band: of the smallest entry that is kept and, if some are skipped, of the largest."""
    return (band.skip + band.keep - 1, *((band.skip,) if band.skip else ()))


def cut_of(found: tuple[RankedMagnitude, ...]) -> Cut:
    """Returns the cut that keeps all entries equal to an end."""
    high = found[1].magnitude if len(found) > 1 else float("inf")
    return Cut(low=found[0].magnitude, high=high)


def ties_to_place(band: Band, found: tuple[RankedMagnitude, ...]) -> tuple[int | None, int]:
    """Returns (number of entries equal to the low end that are kept, None: all; number of entries equal to the high end that
    are dropped)."""
    low, *high = found
    stay = band.skip + band.keep - low.above
    return (stay if low.bits and stay < low.equal else None), (band.skip - high[0].above if high and high[0].bits else 0)
