"""Places labels beside points without overlap, as close to their points as possible."""

from collections.abc import Sequence
from math import cos, hypot, radians, sin
from typing import NamedTuple


class Box(NamedTuple):
    """Left, bottom, right, top in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """Computes the common area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    def outside(self, bounds: "Box") -> float:
        """Computes how far it extends beyond `bounds`."""
        return (
            max(bounds.left - self.left, 0.0) + max(self.right - bounds.right, 0.0)
            + max(bounds.bottom - self.bottom, 0.0) + max(self.top - bounds.top, 0.0)
        )  # fmt: skip


RADII = (9.0, 14.0, 20.0, 28.0, 38.0, 50.0, 64.0, 80.0, 100.0)
ANGLES = (0, 180, 90, 270, 35, 325, 145, 215, 60, 120, 240, 300)
"""Right of the point first, where readers look for its name."""
ROUNDS = 3


def place(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], taken: Sequence[Box], bounds: Box
) -> list[Box]:
    """Returns a box for each label: none overlaps another or covers what is `taken`, and all lie within `bounds` if there is
    room.

    Labels are placed one after the other and then moved again, given all others; the same input gives the same result.
    """
    boxes: list[Box | None] = [None] * len(points)
    for _ in range(ROUNDS):
        for i, (point, size) in enumerate(zip(points, sizes, strict=True)):
            others = [box for j, box in enumerate(boxes) if box is not None and j != i]
            candidates = [
                (_cost(box, rank, radius, others, taken, bounds) + _mistakable(box, i, points), n, box)
                for n, (rank, radius, box) in enumerate(_candidates(point, size))
            ]
            boxes[i] = min(candidates)[2]
    return [box for box in boxes if box is not None]


def _candidates(point: tuple[float, float], size: tuple[float, float]) -> list[tuple[int, float, Box]]:
    """Returns boxes around a point whose nearest edge or corner is at a given radius, (rank of the angle, radius, box)."""
    (x, y), (width, height) = point, size
    found = []
    for radius in RADII:
        for rank, angle in enumerate(ANGLES):
            dx, dy = cos(radians(angle)), sin(radians(angle))
            left = x + radius * dx - width * (1 - dx) / 2
            bottom = y + radius * dy - height * (1 - dy) / 2
            found.append((rank, radius, Box(left, bottom, left + width, bottom + height)))
    return found


def _cost(box: Box, rank: int, radius: float, others: Sequence[Box], taken: Sequence[Box], bounds: Box) -> float:
    crossed = sum(box.overlap(other) for other in others) + sum(box.overlap(other) for other in taken)
    return 1000.0 * box.outside(bounds) + 10.0 * crossed + (6.0 if crossed else 0.0) + radius + 0.5 * rank


def _mistakable(box: Box, own: int, points: Sequence[tuple[float, float]]) -> float:
    """Computes a penalty for being closer to another point than to the label's own, or not clearly farther."""
    distances = [nearest_edge(point, box)[1] for point in points]
    nearest = min((d for i, d in enumerate(distances) if i != own), default=float("inf"))
    return max(0.0, 40.0 - 25.0 * nearest / max(distances[own], 1.0))


def nearest_edge(point: tuple[float, float], box: Box) -> tuple[tuple[float, float], float]:
    """Returns the nearest place on a box to a point, and its distance: where a leader line ends."""
    x = min(max(point[0], box.left), box.right)
    y = min(max(point[1], box.bottom), box.top)
    return (x, y), hypot(point[0] - x, point[1] - y)
