"""Ext-Sub: subtracts from an expert adapter what only the anti-expert has learned, without what both share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from expunge.methods.editing.factors import AdapterMethod

if TYPE_CHECKING:
    from expunge.methods.editing.factors import Array


class ExtSub(AdapterMethod):
    """Row by row of W+ (expert) and W- (anti-expert), with f the direction between the two:

        f_i      = W+_i / ||W+_i|| + W-_i / ||W-_i||
        shared_i = (W-_i . f_i / ||f_i||) f_i / ||f_i||          the part of the anti-expert that both have in common
        W_i      = W+_i - alpha (W-_i - shared_i)

    f halves the angle, so that shared_i = ||W-_i|| / 2 times f_i, and the whole method is

        W_i = (1 + alpha/2 ||W-_i|| / ||W+_i||) W+_i - alpha/2 W-_i

    which is computed: half of the anti-expert is subtracted, and the expert is amplified by half the quotient of the norms. It is
    of rank r+ + r-, where the released script writes out every weight, and finite where that divides by zero: opposite rows give
    (1 + alpha) W+_i for equal norms, a zero row of the anti-expert leaves the expert's. Each adapter has its own scaling (the
    release applies the expert's to both), so that ranks, alphas and targets may differ.
    """

    paper: ClassVar[str] = "Hu et al. 2024, arXiv 2308.08090"
    formula: ClassVar[str] = "W = (1 + alpha/2 ||W-|| / ||W+||) W+ - alpha/2 W-, row by row"
    cost: ClassVar[str] = "seconds on a CPU: factors only, no base model; the result has rank r+ + r-"
    purpose: ClassVar[str] = "a behaviour: subtracts only what the bad adapter does beyond the good one"
    weakness: ClassVar[str] = "wants adapters of clear contrast"
    wants_contrast: ClassVar[bool] = True

    name: Literal["ext_sub"] = "ext_sub"
    alpha: float = 1.0
    """Factor of what only the anti-expert has learned."""
    zero_expert: Literal["drop", "subtract"] = "drop"
    """A row, or a module, that the anti-expert changes and the expert does not: `drop` it (the limit of the formula: all of it
    then counts as shared), or `subtract` alpha times the anti-expert's."""

    def coefficients(self, expert_norms_N: Array, anti_norms_N: Array) -> tuple[Array, Array]:
        import numpy as np

        there_N = expert_norms_N > 0
        ratio_N = np.divide(anti_norms_N, expert_norms_N, out=np.zeros_like(expert_norms_N), where=there_N)
        alone = 0.0 if self.zero_expert == "drop" else -self.alpha
        return 1 + self.alpha / 2 * ratio_N, np.where(there_N, -self.alpha / 2, alone)
