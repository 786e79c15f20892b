"""Finds the strength or the number of coordinates by the scores of the guarded model alone, without gradients.

The noise of a token is the same at every strength (`corruptions.noise`), so two strengths are compared with common random
numbers. A setting is scored once. Every search returns the best setting that it saw, not the last.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

Distance = Callable[[float], float]
"""How far the score at a setting is from what it should be; 0 at best."""


class Tuned(NamedTuple):
    setting: float
    distance: float
    tried: int


class _Remembered:
    """A function that is asked once for each setting."""

    def __init__(self, function: Distance) -> None:
        self._function, self.known = function, dict[float, float]()

    def __call__(self, setting: float) -> float:
        if setting not in self.known:
            self.known[setting] = self._function(setting)
        return self.known[setting]

    def best(self) -> Tuned:
        setting = min(self.known, key=lambda s: (self.known[s], s))
        return Tuned(setting, self.known[setting], len(self.known))


def strength_search(
    distance: Distance, start: float, *, low: float, high: float, close: float = 0.01, steps: int = 12, reach: float = 0.35
) -> Tuned:
    """Zeroth-order descent in x = log(strength) between low and high:

        g = [d(x + reach) - d(x - reach)] / (the distance between these two, clamped points)

    and a step of Newton's length where d looks like the distance |m(x) - target|, d / |g|, at most 1.5 wide. Where d is flat (a
    step function, or noise that is far too weak or too strong) there is no slope to follow, and the largest gap between
    settings that were tried, next to the best of them, is bisected.

    close   a distance that is small enough to stop
    """
    f = _Remembered(lambda x: distance(math.exp(x)))
    floor, ceiling = math.log(low), math.log(high)
    x = min(max(math.log(start), floor), ceiling)
    for _ in range(steps):
        if f(x) <= close:
            break
        left, right = max(floor, x - reach), min(ceiling, x + reach)
        rise = f(right) - f(left)
        if abs(rise) < 1e-3:
            x = _between(f, floor, ceiling)
        else:
            move = -math.copysign(min(1.5, f(x) * (right - left) / abs(rise)), rise)
            x = min(max(x + move, floor), ceiling)
            if x in f.known:
                x = _between(f, floor, ceiling)
    f(x)
    best = f.best()
    return best._replace(setting=math.exp(best.setting))


def _between(f: _Remembered, floor: float, ceiling: float) -> float:
    """The middle of the wider gap beside the best setting so far; the ends of the range come first."""
    for end in (floor, ceiling):
        if end not in f.known:
            return end
    tried = sorted(f.known)
    at = tried.index(f.best().setting)
    gaps = [(tried[i + 1] - tried[i], (tried[i] + tried[i + 1]) / 2) for i in (at - 1, at) if 0 <= i < len(tried) - 1]
    return max(gaps)[1]


def dims_search(distance: Distance, width: int, close: float = 0.01) -> Tuned:
    """A whole number from 1 to `width`: powers of two first, then the gaps beside the best one are bisected until they close."""
    f = _Remembered(distance)
    tried = sorted({*(2**i for i in range(width.bit_length())), width})
    for count in tried:
        f(count)
    while f.best().distance > close:
        tried = sorted(f.known)  # type: ignore[arg-type]
        at = tried.index(int(f.best().setting))
        gaps = [(tried[i + 1] - tried[i], (tried[i] + tried[i + 1]) // 2) for i in (at - 1, at) if 0 <= i < len(tried) - 1]
        gap, middle = max(gaps)
        if gap < 2:
            break
        f(int(middle))
    return f.best()
