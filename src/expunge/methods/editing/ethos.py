"""Ethos: subtracts from an adapter what the anti-expert changes strongly in the singular directions of the base weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.errors import ExpungeError
from expunge.methods.editing.factors import AdapterMethod, Factors

if TYPE_CHECKING:
    from expunge.methods.editing.factors import Array


class Ethos(AdapterMethod):
    """With U S V^T the singular value decomposition of W0 + W+ (the base's weight with the expert's change):

        P = U^T W- V                                  the anti-expert in that basis
        F = U (P where |P| >= threshold max|P|) V^T   without the small entries, which are taken for general knowledge
        W = W+ - alpha F

    The filtered P is not of low rank: the result is the nearest adapter of rank --rank, and the error is reported. The released
    code compares with the largest signed entry instead of the largest magnitude.
    """

    paper: ClassVar[str] = "Gao et al. 2024, arXiv 2403.08994"
    formula: ClassVar[str] = "W = W+ - alpha U (U^T W- V where large) V^T,  U S V^T = W0 + W+"
    cost: ClassVar[str] = "one singular value decomposition of each adapted weight of the base, on a CPU"
    purpose: ClassVar[str] = "subtracts only along directions the base hardly uses"
    weakness: ClassVar[str] = "needs the base; a cut-off to choose"
    reads_base: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    name: Literal["ethos"] = "ethos"
    alpha: float = 1.0
    """Factor of the filtered anti-expert; the paper takes 0.5 to 1."""
    threshold: float = Field(0.03, ge=0, le=1)
    """Entries of P below this share of the largest magnitude are dropped (xi)."""

    def edit(self, expert: Factors, anti: Factors, weight_OI: Array | None = None) -> Factors:
        import numpy as np

        if weight_OI is None:
            raise ValueError("ethos needs the base's weight")
        u_OK, _, vh_KI = np.linalg.svd(weight_OI + expert.b_OR @ expert.a_RI, full_matrices=False)
        p_KK = (u_OK.T @ anti.b_OR) @ (anti.a_RI @ vh_KI.T)
        kept_KK = np.where(np.abs(p_KK) >= self.threshold * np.abs(p_KK).max(), p_KK, 0.0)
        b_OR = np.concatenate([expert.b_OR, -self.alpha * u_OK @ kept_KK], axis=1)
        return Factors(b_OR, np.concatenate([expert.a_RI, vh_KI]))

    def edit_rows(self, expert_NI: Array, anti_NI: Array) -> Array:
        raise ExpungeError("ethos projects weight differences on singular vectors, and only LoRA has those; give LoRA adapters")
