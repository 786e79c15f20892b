"""TIES: trims small differences, elects a sign per element, and averages the differences that agree with it."""

from typing import ClassVar, Literal

from expunge.methods.editing.arithmetic import add_scaled, check_election, count_kept, elect, piece_weights, trim
from expunge.methods.editing.base import Band, Edited, EditingMethod, Piece, Scope, Shares, Weights, of_model, one_each


class Ties(EditingMethod):
    """With d_i = x_i - base, in float32:

        trim    keep the `density` largest |d_i| of each model, over `scope`; zero the rest
        elect   s = sgn sum_i w_i d_i, element by element
        merge   v = base + scale * (sum over agreeing models of w_i d_i) / (sum of their w_i)

    The scope matters: RMU changes 2 % of the weights, so that keeping 20 % of all weights (the paper) trims nothing, while
    keeping 20 % of each tensor drops four fifths of every change. The result reports which share was kept.
    TIES is an odd function (negated differences give the negated merge): to forget, keep weights positive and the scale negative.
    The authors' code gives an element whose sum is exactly 0 the majority sign of the whole model; the paper's formula,
    followed here, has sgn 0 = 0 and leaves the base weight.
    """

    paper: ClassVar[str] = "Yadav et al. 2023, arXiv 2306.01708"
    formula: ClassVar[str] = "v = base + scale mean{ trim(d_i) : sgn trim(d_i) = sgn sum_j trim(d_j) }"
    cost: ClassVar[str] = "two passes over the weights; memory for a piece of each model"
    purpose: ClassVar[str] = "merges several models whose changes disagree"
    weakness: ClassVar[str] = "drops small changes, which forgetting often is"

    name: Literal["ties"] = "ties"
    density: Shares = (0.2,)
    """Share of entries that are kept, in (0, 1]; one number, or one per model."""
    scope: Scope = "global"
    """What the share is taken of: `global` all weights of a model (the paper), `global_changed` the weights in tensors that
    differ from the base, `per_tensor` each tensor separately (mergekit)."""
    tie_policy: Literal["keep", "exact"] = "keep"
    """Entries equal to the last one kept: `keep` all of them, or `exact`ly the share, the first ones in order."""
    sign: Literal["sum", "count"] = "sum"
    """Elect by the sum of the differences, or by the count of their signs."""
    cancelled: Literal["base", "positive"] | None = None
    """Where the sum is exactly 0: keep the `base` weight (the paper's formula), or take the `positive` entries (mergekit).
    Default: `positive` with the scope per_tensor, `base` with the others."""
    weights: Weights = ()
    """One weight per model, in order; default: all 1."""
    normalize: bool = True
    """Divide by the weights that agree: a mean, as in the paper, instead of a sum."""
    scale: float = 1.0
    """Factor of the merged difference (lambda); negative to forget."""

    @property
    def trims_over(self) -> Scope:
        return self.scope

    @property
    def exact_ties(self) -> bool:
        return self.tie_policy == "exact"

    def check(self, models: int) -> None:
        one_each("density", self.density, models)
        one_each("weights", self.weights, models)
        check_election("ties", self.weights, self.normalize)

    def band(self, model: int, entries: int) -> Band | None:
        density = of_model(self.density, model)
        return None if density >= 1 else Band(0, max(1, int(density * entries)))

    def edit(self, piece: Piece) -> Edited:
        for values_E, cut in zip(piece.inputs, piece.cuts, strict=True):
            trim(values_E, piece.offset + piece.start, cut)
        kept = tuple(count_kept(values_E) for values_E in piece.inputs)
        cancelled = self.cancelled or ("positive" if self.scope == "per_tensor" else "base")
        weights = piece_weights(piece, self.weights)
        elected = elect(piece.inputs, weights, sign=self.sign, cancelled=cancelled, normalize=self.normalize)
        return Edited(add_scaled(piece.base_E, elected.values_E, self.scale), kept, sum(kept) - elected.agreeing)
