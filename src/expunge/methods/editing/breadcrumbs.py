"""Model breadcrumbs: drops the smallest and the largest differences of each tensor, and adds the rest."""

from typing import ClassVar, Literal

from pydantic import Field

from expunge.methods.editing.arithmetic import add_scaled, check_sum, count_kept, mean_divisor, piece_weights, trim, weighted_sum
from expunge.methods.editing.base import Band, Edited, EditingMethod, Piece, Shares, Weights, of_model, one_each


class Breadcrumbs(EditingMethod):
    """v = base + scale sum_i w_i mask(x_i - base).

    In each tensor the mask leaves out the share `gamma` of the largest magnitudes (outliers) and the 1 - density - gamma
    smallest (noise).
    """

    paper: ClassVar[str] = "Davari and Belilovsky 2023, arXiv 2312.06795"
    formula: ClassVar[str] = "v = base + scale sum_i w_i mask(x_i - base), the mask without the largest gamma and the smallest"
    cost: ClassVar[str] = "two passes over the weights; memory for a piece of each model"
    purpose: ClassVar[str] = "merges without the largest and smallest changes"
    weakness: ClassVar[str] = "two shares to tune"

    name: Literal["breadcrumbs"] = "breadcrumbs"
    density: Shares = (0.15,)
    """Share of entries that stay, in (0, 1]; one number, or one per model."""
    gamma: float = Field(0.01, ge=0, lt=1)
    """Share of the largest entries that are dropped; reduced if density + gamma exceeds 1."""
    tie_policy: Literal["keep", "exact"] = "keep"
    """Entries equal to one at the border: `keep` all of them, or `exact`ly the share, the first ones in order."""
    weights: Weights = ()
    """One weight per model, in order; default: all 1."""
    scale: float = 1.0
    """Factor of the merged difference (lambda); negative to forget."""
    normalize: bool = False
    """Divide by the sum of the weights: the mean difference instead of the sum."""

    @property
    def exact_ties(self) -> bool:
        return self.tie_policy == "exact"

    def check(self, models: int) -> None:
        one_each("density", self.density, models)
        one_each("weights", self.weights, models)
        check_sum("breadcrumbs", self.weights, models, self.normalize)

    def band(self, model: int, entries: int) -> Band | None:
        keep = max(1, int(of_model(self.density, model) * entries))
        skip = min(int(self.gamma * entries), entries - keep)
        return None if keep == entries else Band(skip, keep)

    def edit(self, piece: Piece) -> Edited:
        for values_E, cut in zip(piece.inputs, piece.cuts, strict=True):
            trim(values_E, piece.offset + piece.start, cut)
        kept = tuple(count_kept(values_E) for values_E in piece.inputs)
        change_E = weighted_sum(piece.inputs, piece_weights(piece, self.weights))
        divisor = mean_divisor(self.weights, piece.among, self.normalize)
        return Edited(add_scaled(piece.base_E, change_E if divisor == 1 else change_E.div_(divisor), self.scale), kept)
