"""DARE with task arithmetic: drops differences at random, rescales the rest, and adds them."""

from typing import ClassVar, Literal

from expunge.methods.editing.arithmetic import add_scaled, check_sum, count_kept, drop, mean_divisor, piece_weights, weighted_sum
from expunge.methods.editing.base import Edited, EditingMethod, Piece, Shares, Weights, of_model, one_each
from expunge.records import Seed


class DareLinear(EditingMethod):
    """v = base + scale sum_i w_i m_i (x_i - base) / density,   m_i ~ Bernoulli(density) per element.

    The division keeps the expected difference. The random draws depend on seed, model, tensor name and position only.
    """

    paper: ClassVar[str] = "Yu et al. 2024, arXiv 2311.03099"
    formula: ClassVar[str] = "v = base + scale sum_i w_i m_i (x_i - base) / density, m_i ~ Bernoulli(density)"
    cost: ClassVar[str] = "one pass over the weights; memory for a piece of each model"
    purpose: ClassVar[str] = "merges after dropping most changes at random"
    weakness: ClassVar[str] = "random; keep the seed"

    name: Literal["dare_linear"] = "dare_linear"
    density: Shares = (0.1,)
    """Probability that an entry is kept (1 - p of the paper), in (0, 1]; one number, or one per model."""
    rescale: bool = True
    """Divide the kept entries by the density."""
    seed: Seed = 0
    """Seed of the random draws."""
    weights: Weights = ()
    """One weight per model, in order; default: all 1."""
    scale: float = 1.0
    """Factor of the merged difference (lambda); negative to forget."""
    normalize: bool = False
    """Divide by the sum of the weights: the mean difference instead of the sum."""

    def check(self, models: int) -> None:
        one_each("density", self.density, models)
        one_each("weights", self.weights, models)
        check_sum("dare_linear", self.weights, models, self.normalize)

    def edit(self, piece: Piece) -> Edited:
        weights = piece_weights(piece, self.weights)
        for i, (values_E, model) in enumerate(zip(piece.inputs, piece.models, strict=True)):
            density = of_model(self.density, model)
            drop(values_E, density, seed=self.seed, model=model, name=piece.name, start=piece.start)
            weights[i] /= density if self.rescale else 1.0
        kept = tuple(count_kept(values_E) for values_E in piece.inputs)
        change_E = weighted_sum(piece.inputs, weights)
        divisor = mean_divisor(self.weights, piece.among, self.normalize)
        return Edited(add_scaled(piece.base_E, change_E if divisor == 1 else change_E.div_(divisor), self.scale), kept)
