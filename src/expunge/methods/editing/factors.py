"""Defines the interface of adapter arithmetic: a pure function on the factors of two adapters, one module at a time.

    expert  W+ = B+ A+      the adapter that is kept          O outputs x R ranks, R x I inputs
    anti    W- = B- A-      the adapter that is subtracted    each with its own scaling inside B
    edit    -> B A          the new adapter's factors, of scaling 1

What such a method needs of W (norms of its rows, inner products) is computed from the factors: W itself, as large as a weight of
the model, is never formed, and the base model is not needed. Adapters that are vectors, (IA)^3 and prefixes,
use the same row formula: `edit_rows`. All arrays are numpy's, in float64: importing torch would take longer than everything else
that a merge of two adapters does.

Shape suffixes: O outputs (rows of W), I inputs, R rank, N rows of any kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from expunge.methods.base import Family, Spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Factors:
    """W = B A of one module, in float64."""

    b_OR: Array
    a_RI: Array

    @property
    def rank(self) -> int:
        return len(self.a_RI)

    @cached_property
    def row_norms(self) -> Array:
        """||W_i|| of each row, without W: ||b_i A|| = ||b_i R^T||, where A^T = Q R. O numbers; exactly 0 for a zero row."""
        import numpy as np

        r_RR: Array = np.linalg.qr(self.a_RI.T, mode="r")  # type: ignore[assignment]  # numpy types the other modes alone
        return norms(self.b_OR @ r_RR.T)

    def dot(self, other: Factors) -> float:
        """<W, W'> over all entries: sum of (B^T B') * (A A'^T)."""
        return float(((self.b_OR.T @ other.b_OR) * (self.a_RI @ other.a_RI.T)).sum())


def norms(rows_NI: Array) -> Array:
    """Returns the Euclidean norm of each row."""
    import numpy as np

    norms_N: Array = np.linalg.norm(rows_NI, axis=1)
    return norms_N


def no_change(like: Factors) -> Factors:
    """Returns an adapter of rank 0, for a module that only the other adapter has."""
    return Factors(like.b_OR[:, :0], like.a_RI[:0])


def recompress(factors: Factors, rank: int) -> tuple[Factors, float]:
    """Returns the nearest product of at most rank `rank` (Eckart-Young), from QR decompositions of the factors, and the
    relative error ||W - W'|| / ||W||."""
    import numpy as np

    rank = min(rank, *factors.b_OR.shape[:1], *factors.a_RI.shape[1:])
    if factors.rank <= rank:
        return factors, 0.0
    left, right = np.linalg.qr(factors.b_OR), np.linalg.qr(factors.a_RI.T)
    u, s, vh = np.linalg.svd(left.R @ right.R.T, full_matrices=False)
    root = np.sqrt(s[:rank])
    kept = Factors(left.Q @ (u[:, :rank] * root), (root[:, None] * vh[:rank]) @ right.Q.T)
    total = float(np.square(s).sum())
    return kept, (float(np.square(s[rank:]).sum()) / total) ** 0.5 if total else 0.0


class AdapterMethod(Spec):
    """Base class of methods that compute a new adapter from two, an expert and an anti-expert."""

    family: ClassVar[Family] = "editing"
    reads_base: ClassVar[bool] = False
    """Whether it needs the base model's weight of each module."""
    exact: ClassVar[bool] = True
    """Whether the result is a product of rank r+ + r-; if not, a rank must be given, and the error is reported."""
    wants_contrast: ClassVar[bool] = False
    """Whether the result means little if the two adapters are nearly parallel or nearly orthogonal."""

    def coefficients(self, expert_norms_N: Array, anti_norms_N: Array) -> tuple[Array, Array]:
        """Returns (p, m), one number per row: row i of the result is p_i W+_i + m_i W-_i. Finite for all norms, including 0."""
        raise TypeError(f"{type(self).__name__} defines no coefficients")

    def edit(self, expert: Factors, anti: Factors, weight_OI: Array | None = None) -> Factors:
        """Computes [diag(p) B+, diag(m) B-] [A+; A-]: the row formula, exactly, of rank r+ + r-."""
        import numpy as np

        plus_O, minus_O = self.coefficients(expert.row_norms, anti.row_norms)
        b_OR = np.concatenate([plus_O[:, None] * expert.b_OR, minus_O[:, None] * anti.b_OR], axis=1)
        return Factors(b_OR, np.concatenate([expert.a_RI, anti.a_RI]))

    def edit_rows(self, expert_NI: Array, anti_NI: Array) -> Array:
        """Applies the same formula to rows that are stored as they are: differences to 1 of (IA)^3, heads of prefixes."""
        plus_N, minus_N = self.coefficients(norms(expert_NI), norms(anti_NI))
        return plus_N[:, None] * expert_NI + minus_N[:, None] * anti_NI
