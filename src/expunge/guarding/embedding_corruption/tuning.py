"""Finds the corruption strength or the number of coordinates from the guarded model's scores, without gradients.

The noise of a token is the same at every strength (`corruptions.noise`), so two strengths are compared with common random
numbers. A setting is scored once. Every search returns the best setting that it saw, not the last.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

Distance = Callable[[float], float]
"""Distance of the score at a setting from the target score; 0 is best."""


class Tuned(NamedTuple):
    setting: float
    distance: float
    tried: int


class _Remembered:
    """Caches a function that is evaluated once for each setting."""

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
    """Minimizes by zeroth-order descent in x = log(strength) between low and high:

        g = [d(x + reach) - d(x - reach)] / (the distance between these two, clamped points)

    with a step of length d / |g|, at most 1.5 (Newton's step for a distance |m(x) - target|). Where d is flat (a step function,
    or noise that is far too weak or too strong), the wider gap next to the best setting so far is bisected instead.

    close   distance at which the search stops
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
    """Returns the middle of the wider gap next to the best setting so far; the ends of the range come first."""
    for end in (floor, ceiling):
        if end not in f.known:
            return end
    tried = sorted(f.known)
    at = tried.index(f.best().setting)
    gaps = [(tried[i + 1] - tried[i], (tried[i] + tried[i + 1]) / 2) for i in (at - 1, at) if 0 <= i < len(tried) - 1]
    return max(gaps)[1]


def dims_search(distance: Distance, width: int, close: float = 0.01) -> Tuned:
    """Finds an integer from 1 to `width`: powers of two first, then the gaps next to the best one are bisected until they
    close."""
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
