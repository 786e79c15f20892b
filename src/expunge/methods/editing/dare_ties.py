"""DARE with TIES: drops differences at random instead of trimming them, then elects a sign and merges what agrees."""

from typing import ClassVar, Literal

from expunge.methods.editing.arithmetic import add_scaled, check_election, count_kept, drop, elect, piece_weights
from expunge.methods.editing.base import Edited, EditingMethod, Piece, Shares, Weights, of_model, one_each
from expunge.records import Seed


class DareTies(EditingMethod):
    """d_i = m_i (x_i - base) / density,  m_i ~ Bernoulli(density);  then the election and the disjoint mean of TIES."""

    paper: ClassVar[str] = "Yu et al. 2024, arXiv 2311.03099, with Yadav et al. 2023, arXiv 2306.01708"
    formula: ClassVar[str] = "v = base + scale mean{ d_i : sgn d_i = sgn sum_j d_j },  d_i = m_i (x_i - base) / density"
    cost: ClassVar[str] = "one pass over the weights; memory for a piece of each model"
    purpose: ClassVar[str] = "as dare_linear, with the vote of ties"
    weakness: ClassVar[str] = "random; keep the seed"

    name: Literal["dare_ties"] = "dare_ties"
    density: Shares = (0.1,)
    """Probability that an entry is kept (1 - p of the paper), in (0, 1]; one number, or one per model."""
    rescale: bool = True
    """Divide the kept entries by the density."""
    seed: Seed = 0
    """Seed of the random draws."""
    sign: Literal["sum", "count"] = "sum"
    """Elect by the sum of the differences, or by the count of their signs."""
    cancelled: Literal["base", "positive"] = "base"
    """Where the sum is exactly 0: leave the `base` weight, or take the `positive` entries (mergekit)."""
    weights: Weights = ()
    """One weight per model, in order; default: all 1."""
    normalize: bool = True
    """Divide by the weights that agree: a mean instead of a sum."""
    scale: float = 1.0
    """Factor of the merged difference (lambda); negative to forget."""

    def check(self, models: int) -> None:
        one_each("density", self.density, models)
        one_each("weights", self.weights, models)
        check_election("dare_ties", self.weights, self.normalize)

    def edit(self, piece: Piece) -> Edited:
        for values_E, model in zip(piece.inputs, piece.models, strict=True):
            density = of_model(self.density, model)
            drop(values_E, density, seed=self.seed, model=model, name=piece.name, start=piece.start)
            if self.rescale and density < 1:
                values_E.mul_(1 / density)
        kept = tuple(count_kept(values_E) for values_E in piece.inputs)
        weights = piece_weights(piece, self.weights)
        elected = elect(piece.inputs, weights, sign=self.sign, cancelled=self.cancelled, normalize=self.normalize)
        return Edited(add_scaled(piece.base_E, elected.values_E, self.scale), kept, sum(kept) - elected.agreeing)
