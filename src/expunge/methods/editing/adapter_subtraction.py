"""Adapter subtraction: subtracts what one adapter has learned from another."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from expunge.methods.editing.factors import AdapterMethod

if TYPE_CHECKING:
    from expunge.methods.editing.factors import Array


class AdapterSubtraction(AdapterMethod):
    """W = W+ - alpha W-: exact, of rank r+ + r-, each adapter with its own scaling.

    With (IA)^3, whose vectors l multiply and stand at 1 where nothing was learned: l = l+ - alpha (l- - 1).
    """

    paper: ClassVar[str] = "Zhang et al. 2023, arXiv 2306.14870"
    formula: ClassVar[str] = "W = W+ - alpha W-"
    cost: ClassVar[str] = "seconds on a CPU: factors only, no base model; the result has rank r+ + r-"
    purpose: ClassVar[str] = "one adapter minus another, as they stand"
    weakness: ClassVar[str] = "takes shared abilities away too"

    name: Literal["adapter_subtraction"] = "adapter_subtraction"
    alpha: float = 1.0
    """Factor of the second adapter."""

    def coefficients(self, expert_norms_N: Array, anti_norms_N: Array) -> tuple[Array, Array]:
        import numpy as np

        return np.ones_like(expert_norms_N), np.full_like(anti_norms_N, -self.alpha)
