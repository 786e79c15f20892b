"""Slerp: interpolates between the base and one model along the arc between them (spherical interpolation)."""

import math
from typing import ClassVar, Literal

from expunge.errors import ExpungeError
from expunge.methods.editing.base import Angle, Edited, EditingMethod, Piece

NEARLY_PARALLEL = 0.9995
"""|cos| above which sin(omega) is too small to divide by; linear interpolation is used instead."""


class Slerp(EditingMethod):
    """v = (sin((1-t) omega) base + sin(t omega) x) / sin(omega),   cos(omega) = <base, x> / (|base| |x|), tensor by tensor.

    Nearly parallel tensors are interpolated linearly, and so is a tensor of zeros, which has no direction.
    """

    paper: ClassVar[str] = "Shoemake 1985, Animating rotation with quaternion curves"
    formula: ClassVar[str] = "v = (sin((1-t) omega) base + sin(t omega) x) / sin(omega)"
    cost: ClassVar[str] = "two passes over the weights; memory for a piece of both models"
    purpose: ClassVar[str] = "a point between two models"
    weakness: ClassVar[str] = "exactly two models"
    reads: ClassVar[Literal["differences", "weights"]] = "weights"
    measures_angle: ClassVar[bool] = True

    name: Literal["slerp"] = "slerp"
    t: float = 0.5
    """0 is the base, 1 the model; values outside extrapolate along the arc."""

    def check(self, models: int) -> None:
        if models != 1:
            raise ExpungeError(f"slerp goes from the base to one model, not to {models}; give one model, or use linear")

    def edit(self, piece: Piece) -> Edited:
        assert piece.angle is not None
        base, model = coefficients(self.t, piece.angle)
        (values_E,) = piece.inputs
        return Edited(values_E.mul_(model).add_(piece.base_E * base))


def coefficients(t: float, angle: Angle) -> tuple[float, float]:
    """Returns the factors of the base and of the model."""
    norm = math.sqrt(angle.base) * math.sqrt(angle.model)
    cosine = max(-1.0, min(1.0, angle.dot / norm)) if norm > 0 else 0.0
    if norm == 0 or abs(cosine) > NEARLY_PARALLEL:
        return 1 - t, t
    omega = math.acos(cosine)
    return math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)
