"""Statistics of the tokens of an answer from one teacher-forced pass. Plain arrays; nothing here runs a model."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TokenDistribution(NamedTuple):
    """Statistics of the whole vocabulary at each token of an answer."""

    rank: NDArray[np.int64]
    """Number of tokens more probable than the answer's."""
    mean: NDArray[np.float32]
    """E_p[log p] over the vocabulary, in nats."""
    variance: NDArray[np.float32]
    """Var_p[log p] over the vocabulary."""

    def then(self, other: "TokenDistribution") -> "TokenDistribution":
        return TokenDistribution(
            np.concatenate([self.rank, other.rank]),
            np.concatenate([self.mean, other.mean]),
            np.concatenate([self.variance, other.variance]),
        )

    def part(self, tokens: slice) -> "TokenDistribution":
        return TokenDistribution(self.rank[tokens], self.mean[tokens], self.variance[tokens])


class TokenStats(NamedTuple):
    """One teacher-forced answer of n tokens, in order."""

    logp: NDArray[np.float32]
    """Natural log-probability of each answer token given the prompt and the true answer tokens before it."""
    hit: NDArray[np.bool_]
    """Whether the answer token is the model's most probable one at its position."""
    has_end: bool
    """Whether the last of the tokens is the end token."""
    distribution: TokenDistribution | None = None
    """Only if a metric needs it."""

    def then(self, other: "TokenStats") -> "TokenStats":
        """Returns the statistics of these tokens and those that follow; both with a distribution, or neither."""
        both = (self.distribution, other.distribution)
        distribution = both[0].then(both[1]) if both[0] is not None and both[1] is not None else None
        return TokenStats(
            np.concatenate([self.logp, other.logp]), np.concatenate([self.hit, other.hit]), other.has_end, distribution
        )

    def without_end(self) -> "TokenStats":
        """Returns the statistics without the end token."""
        return self._part(slice(None, -1), has_end=False) if self.has_end else self

    def without_last(self) -> "TokenStats":
        """Returns the statistics without the last token, whether it is the end token or one of the text."""
        return self._part(slice(None, -1), has_end=False)

    def after(self, skip: int) -> "TokenStats":
        """Returns the statistics without the first `skip` tokens."""
        return self._part(slice(skip, None), has_end=self.has_end)

    def _part(self, tokens: slice, *, has_end: bool) -> "TokenStats":
        distribution = self.distribution.part(tokens) if self.distribution is not None else None
        return TokenStats(self.logp[tokens], self.hit[tokens], has_end, distribution)

    def mean_logp(self) -> float:
        """Computes the mean log-probability per token: the logarithm of the length-normalized probability P(a|q)^(1/|a|)."""
        return float(self.logp.mean(dtype=np.float64))


NOTHING = TokenStats(np.zeros(0, np.float32), np.zeros(0, np.bool_), False)
