"""Which forget rows, retain rows and drawn answers a step sees: a pure function of the seed and the step.

So a run resumes at any step without replaying the steps before, and neither the number of processes nor anything else that
draws random numbers changes what is trained on. The processes share out one global batch, so no two see the same rows.
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
"""(prompts, answers) -> stream of random numbers; every part of the forget set has another one from `_PARTS` on."""


@dataclass(frozen=True)
class Pairs:
    """Forget and retain walked side by side, each in its own endless sequence of shuffled epochs.

    Each epoch of either set is a fresh permutation and visits every row once; the smaller set simply starts its next epoch
    sooner. `*_rows(step)` are the rows of the whole step, for all processes together; `share` gives one process its own.
    """

    forget: int
    """Number of forget examples."""
    retain: int
    """Number of retain examples; 0 when there are none."""
    batch_size: int
    """Rows of either set in one step. A smaller set, or part of one, is in each step as a whole: no row is repeated to fill a
    batch."""
    seed: int
    parts: tuple[tuple[int, ...], ...] = ()
    """Forget rows that are not mixed in a step: the steps take these parts in turn, each with a sequence of its own."""

    def __post_init__(self) -> None:
        for name, least in (("forget", 1), ("retain", 0), ("batch_size", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise ExpungeError(f"{name} is {value}; it has to be at least {least}")
        if not all(self.parts):
            raise ExpungeError(f"part {self.parts.index(()) + 1} of the forget set has no rows")

    def total_steps(self, epochs: float) -> int:
        """Steps until every forget row has been seen `epochs` times; the last step may run into the next epoch."""
        longest = max(map(len, self.parts), default=self.forget)
        return max(len(self.parts), 1) * math.ceil(round(epochs * longest / self._size(longest), 9))

    def epoch(self, step: int) -> float:
        """Passes over the forget set (over its largest part) that are done before `step`."""
        longest = max(map(len, self.parts), default=self.forget)
        return step * self._size(longest) / (longest * max(len(self.parts), 1))

    def check_shares(self, world: int) -> None:
        """Raises ExpungeError where the rows of a step cannot be shared evenly by `world` processes."""
        for count in (*(map(len, self.parts) if self.parts else [self.forget]), self.retain):
            if (size := self._size(count)) % world:
                raise ExpungeError(
                    f"a batch of {size} rows cannot be shared evenly by {world} processes; set --batch-size to a multiple of "
                    f"{world} that the data has"
                )

    def forget_rows(self, step: int) -> list[int]:
        """Indices into the forget set: `batch_size`, or all of a smaller set."""
        if not self.parts:
            return self._walk(_FORGET, self.forget, step)
        turn, place = divmod(step, len(self.parts))
        rows = self.parts[place]
        return [rows[i] for i in self._walk(_PARTS + place, len(rows), turn)]

    def retain_rows(self, step: int) -> list[int]:
        """Indices into the retain set, independent of the forget rows; none without a retain set."""
        return self._walk(_RETAIN, self.retain, step) if self.retain else []

    def answers(
        self, step: int, prompts: str, answers: str, available: int, barred: Sequence[Collection[int]], count: int = 1
    ) -> list[tuple[int, ...]]:
        """For each row of the step `count` different ones of the `available` answers, drawn evenly and anew each step.

        barred  for each row the answers that are not drawn for it
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
    """One answer per draw, evenly among those that are neither barred nor drawn before."""
    chosen: list[int] = []
    for draw in draws:
        taken = sorted({*barred, *chosen})
        answer = int(draw) % (available - len(taken))
        for place in taken:
            answer += answer >= place
        chosen.append(answer)
    return tuple(chosen)


def share(rows: Sequence[int], rank: int, world: int) -> list[int]:
    """The rows of one of `world` processes: every world-th, from its rank on."""
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
