"""Computes what the merging methods share: trimming by magnitude, dropping at random, weighted sums, sign election.

All in float32, in the order of the models, in place where the input is scratch: pieces are small enough
for the CPU's second-level cache, and a new tensor per operation would cost more than the arithmetic in it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from expunge.errors import ExpungeError
from expunge.methods.editing.base import Cut, Piece, of_model

if TYPE_CHECKING:
    from torch import Tensor


WORDS_PER_BLOCK = 8
"""32-bit words that one step of the counter of Philox 4x64 makes."""


def trim(values_E: Tensor, position: int, cut: Cut) -> Tensor:
    """Zeroes, in place, what lies outside of a cut; `position` is that of the first element in the cut's scope."""
    import numpy as np
    import torch

    values, behind = values_E.numpy(), None
    if cut.low > 0 and cut.low_end is not None and position + len(values_E) > cut.low_end:
        behind = max(cut.low_end - position, 0)
    magnitudes = np.abs(values) if behind is not None or cut.high < math.inf else None
    if cut.low > 0:
        # hardshrink keeps |x| > l in one pass, and |x| >= low is |x| > the float32 below it
        below = float(np.nextafter(np.float32(cut.low), np.float32(0)))
        torch.ops.aten.hardshrink.out(values_E, below, out=values_E)
    if magnitudes is None:
        return values_E
    # numpy's comparisons, which take an eightieth of the time of torch's
    if behind is not None:
        values[behind:][magnitudes[behind:] == np.float32(cut.low)] = 0
    if cut.high < math.inf:
        early = max(min(cut.high_end - position, len(values)), 0)
        values[magnitudes > np.float32(cut.high)] = 0
        values[:early][magnitudes[:early] == np.float32(cut.high)] = 0
    return values_E


def drop(values_E: Tensor, density: float, *, seed: int, model: int, name: str, start: int) -> Tensor:
    """Keeps each element with probability `density`, in place.

    The coin of an element is a function of (seed, model, tensor name, position): a counter-based generator is set to the
    position, so that neither the size of pieces nor the number of threads changes it.
    """
    import numpy as np
    import torch

    if density >= 1:
        return values_E
    key = hashlib.sha256(f"{seed}\0{model}\0{name}".encode()).digest()
    generator = np.random.Philox(key=np.frombuffer(key[:16], dtype="<u8"))
    first = start // WORDS_PER_BLOCK
    generator.advance(first)
    lead = start - first * WORDS_PER_BLOCK
    blocks = -(-(lead + len(values_E)) // WORDS_PER_BLOCK)
    words = generator.random_raw(blocks * WORDS_PER_BLOCK // 2).astype("<u8", copy=False).view("<u4")
    dropped = words[lead : lead + len(values_E)] >= np.uint32(min(round(density * 2**32), 2**32 - 1))
    return values_E.masked_fill_(torch.from_numpy(dropped), 0)


def count_kept(values_E: Tensor) -> int:
    import numpy as np

    return int(np.count_nonzero(np.not_equal(values_E.numpy(), 0)))  # torch's count_nonzero is fifty times slower


def weighted_sum(inputs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Computes sum_i w_i x_i in the order of the models; overwrites the inputs."""
    total_E: Tensor | None = None
    for values_E, weight in zip(inputs, weights, strict=True):
        if weight != 1:
            values_E.mul_(weight)
        total_E = values_E if total_E is None else total_E.add_(values_E)
    assert total_E is not None
    return total_E


class Merged(NamedTuple):
    values_E: Tensor
    agreeing: int
    """Number of entries that agree with the elected sign."""


def elect(
    inputs: Sequence[Tensor],
    weights: Sequence[float],
    *,
    sign: Literal["sum", "count"],
    cancelled: Literal["base", "positive"],
    normalize: bool,
) -> Merged:
    """Computes the disjoint mean of TIES, element by element; overwrites the inputs.

        merged = s * sum over {i: sgn(w_i d_i) = s} of |w_i d_i|    divided, where asked for, by the sum of those w_i
        s      = sgn sum_i w_i d_i    or, by count,    sgn sum_i sgn(w_i d_i)

    cancelled  what to do where the sum is exactly 0: `base` keeps the base weight, `positive` takes the positive entries
    """
    import torch

    for values_E, weight in zip(inputs, weights, strict=True):
        if weight != 1:
            values_E.mul_(weight)
    vote_E = inputs[0].clone() if sign == "sum" else inputs[0].sign()
    for values_E in inputs[1:]:
        vote_E.add_(values_E if sign == "sum" else values_E.sign())
    # adding 0 turns -0 into 0, whose copied sign is plus
    sign_E = vote_E.sign_() if cancelled == "base" else torch.copysign(torch.ones(()), vote_E.add_(0.0), out=vote_E)
    votes, agreeing = _Votes(len(sign_E), weights), 0
    merged_E = inputs[0]
    for values_E, weight in zip(inputs, weights, strict=True):
        agreeing += votes.add(values_E.mul_(sign_E).clamp_min_(0), weight)
        merged_E = values_E if values_E is merged_E else merged_E.add_(values_E)
    if normalize:
        merged_E.div_(votes.divisor())
    return Merged(merged_E.mul_(sign_E), agreeing)


class _Votes:
    """Sums the weights of the models that agree, in the order of the models; if all weights are 1, counts them in bytes."""

    def __init__(self, size: int, weights: Sequence[float]) -> None:
        import torch

        self.smallest = min((w for w in weights if w > 0), default=1.0)
        self.counted = all(w == 1 for w in weights) and len(weights) < 256
        self.sums_E = torch.zeros(size, dtype=torch.uint8 if self.counted else torch.float32)

    def add(self, values_E: Tensor, weight: float) -> int:
        """Adds the votes of entries above 0; returns how many there are."""
        import numpy as np
        import torch

        agrees = np.greater(values_E.numpy(), 0)
        if self.counted:
            np.add(self.sums_E.numpy(), agrees.view(np.uint8), out=self.sums_E.numpy())
        else:
            self.sums_E.add_(torch.from_numpy(agrees).float(), alpha=weight)
        return int(np.count_nonzero(agrees))

    def divisor(self) -> Tensor:
        """Returns the sum of agreeing weights, bounded away from 0 (where nobody agrees, the sum of entries is 0)."""
        return self.sums_E.float().clamp_min_(self.smallest)


def add_scaled(base_E: Tensor, change_E: Tensor, scale: float) -> Tensor:
    """Computes base + scale * change, in place of the change."""
    if scale != 1:
        change_E.mul_(scale)
    return change_E.add_(base_E)


def piece_weights(piece: Piece, weights: Sequence[float]) -> list[float]:
    return [of_model(weights, model) for model in piece.models]


def check_election(method: str, weights: Sequence[float], normalize: bool) -> None:
    """Raises ExpungeError for weights whose disjoint mean would divide by zero."""
    if normalize and any(w < 0 for w in weights):
        turned = " ".join(f"{abs(w):g}" for w in weights)
        raise ExpungeError(
            f"{method}: negative weights cancel under normalization ((w d) / w = d, so the vectors would be added); "
            f"to subtract, write --weights {turned} --scale -1, or --no-normalize for a weighted sum"
        )
    if weights and all(w == 0 for w in weights):
        raise ExpungeError(f"{method}: all weights are 0, so nothing would be merged; give at least one other weight")


def check_sum(method: str, weights: Sequence[float], models: int, normalize: bool) -> None:
    """Raises ExpungeError for weights whose sum is zero or negative, where a weighted mean is asked for."""
    total = sum(of_model(weights, model) for model in range(models))
    if normalize and total <= 0:
        raise ExpungeError(
            f"{method}: the weights sum to {total:g}, and dividing by that cancels their signs; "
            "to subtract, keep the weights positive with --scale -1, or write --no-normalize"
        )


def mean_divisor(weights: Sequence[float], models: int, normalize: bool) -> float:
    """Returns the divisor of a mean over all models, including those whose tensor equals the base's."""
    return sum(of_model(weights, model) for model in range(models)) if normalize else 1.0
