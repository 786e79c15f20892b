"""Chooses the forget rows, retain rows and drawn answers of a step: a pure function of the seed and the step.

A run therefore resumes at any step without repeating the steps before, and neither the number of processes nor other uses of
random numbers change what is trained on. The processes share one global batch, so that no two see the same rows.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from expunge.errors import ExpungeError

_FORGET, _RETAIN, _REFUSAL, _PARTS = range(4)
_STREAMS: dict[tuple[str, str], int] = {
    ("forget", "refusals"): _REFUSAL,
    ("forget", "forget"): 2**30,
    ("forget", "retain"): 2**30 + 1,
    ("forget", "alternates"): 2**30 + 2,
    ("retain", "refusals"): 2**30 + 3,
    ("retain", "forget"): 2**30 + 4,
    ("retain", "retain"): 2**30 + 5,
    ("retain", "alternates"): 2**30 + 6,
}
"""(prompts, answers) -> stream of random numbers; every part of the forget set has its own stream from `_PARTS` on."""


@dataclass(frozen=True)
class Pairs:
    """Iterates over forget and retain rows together, each in its own endless sequence of shuffled epochs.

    Each epoch of either set is a new permutation and visits every row once; the smaller set starts its next epoch
    sooner. `*_rows(step)` are the rows of the whole step, for all processes together; `share` gives one process its own.
    """

    forget: int
    """Number of forget examples."""
    retain: int
    """Number of retain examples; 0 if there are none."""
    batch_size: int
    """Rows of either set in one step. A smaller set, or part of one, is used as a whole in each step: no row is repeated to
    fill a batch."""
    seed: int
    parts: tuple[tuple[int, ...], ...] = ()
    """Groups of forget rows that are not mixed in a step: steps take them in turn, each in its own sequence."""

    def __post_init__(self) -> None:
        for name, least in (("forget", 1), ("retain", 0), ("batch_size", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise ExpungeError(f"{name} is {value}; it has to be at least {least}")
        if not all(self.parts):
            raise ExpungeError(f"part {self.parts.index(()) + 1} of the forget set has no rows")

    def total_steps(self, epochs: float) -> int:
        """Returns the number of steps until every forget row has been seen `epochs` times; the last step may extend into the
        next epoch."""
        longest = max(map(len, self.parts), default=self.forget)
        return max(len(self.parts), 1) * math.ceil(round(epochs * longest / self._size(longest), 9))

    def epoch(self, step: int) -> float:
        """Returns the number of passes over the forget set (over its largest part) before `step`."""
        longest = max(map(len, self.parts), default=self.forget)
        return step * self._size(longest) / (longest * max(len(self.parts), 1))

    def check_shares(self, world: int) -> None:
        """Raises ExpungeError if `world` processes cannot share the rows of a step evenly."""
        for count in (*(map(len, self.parts) if self.parts else [self.forget]), self.retain):
            if (size := self._size(count)) % world:
                raise ExpungeError(
                    f"a batch of {size} rows cannot be shared evenly by {world} processes; set --batch-size to a multiple of "
                    f"{world} that the data has"
                )

    def forget_rows(self, step: int) -> list[int]:
        """Returns indices into the forget set: `batch_size`, or all of a smaller set."""
        if not self.parts:
            return self._walk(_FORGET, self.forget, step)
        turn, place = divmod(step, len(self.parts))
        rows = self.parts[place]
        return [rows[i] for i in self._walk(_PARTS + place, len(rows), turn)]

    def retain_rows(self, step: int) -> list[int]:
        """Returns indices into the retain set, independent of the forget rows; empty without a retain set."""
        return self._walk(_RETAIN, self.retain, step) if self.retain else []

    def answers(
        self, step: int, prompts: str, answers: str, available: int, barred: Sequence[Collection[int]], count: int = 1
    ) -> list[tuple[int, ...]]:
        """Returns, for each row of the step, `count` different ones of the `available` answers, drawn uniformly in each step.

        barred  for each row, the answers that are not drawn for it
        """
        draws = _draws(self.seed, _STREAMS[prompts, answers], step, len(barred) * count).reshape(-1, count)
        return [_distinct(row, available, taken) for row, taken in zip(draws, barred, strict=True)]

    def _size(self, count: int) -> int:
        return min(self.batch_size, count)

    def _walk(self, stream: int, count: int, step: int) -> list[int]:
        size = self._size(count)
        visits = (divmod(position, count) for position in range(step * size, (step + 1) * size))
        return [int(_permutation(self.seed, stream, epoch, count)[place]) for epoch, place in visits]


def _distinct(draws: NDArray[np.uint64], available: int, barred: Collection[int]) -> tuple[int, ...]:
    """Draws one answer per draw, uniformly among those that are neither barred nor drawn before."""
    chosen: list[int] = []
    for draw in draws:
        taken = sorted({*barred, *chosen})
        answer = int(draw) % (available - len(taken))
        for place in taken:
            answer += answer >= place
        chosen.append(answer)
    return tuple(chosen)


def share(rows: Sequence[int], rank: int, world: int) -> list[int]:
    """Returns the rows of one of `world` processes: every world-th, starting from its rank. Raises ExpungeError if they
    cannot be shared evenly."""
    if len(rows) % world:
        raise ExpungeError(
            f"a batch of {len(rows)} rows cannot be shared evenly by {world} processes; make it a multiple of {world}"
        )
    return list(rows[rank::world])


@lru_cache(maxsize=16)
def _permutation(seed: int, stream: int, epoch: int, count: int) -> NDArray[np.intp]:
    return np.argsort(_draws(seed, stream, epoch, count), kind="stable")


def _draws(seed: int, stream: int, index: int, count: int) -> NDArray[np.uint64]:
    # Raw draws of a counter-based generator: numpy promises them, and not its shuffles, to stay the same between versions.
    return np.asarray(np.random.Philox(np.random.SeedSequence([seed, stream, index])).random_raw(count))
