"""Names beside points without overlap: each label goes to the free place that is nearest to its point."""

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
        """Area in common."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    def outside(self, bounds: "Box") -> float:
        """How far it sticks out of `bounds`."""
        return (
            max(bounds.left - self.left, 0.0) + max(self.right - bounds.right, 0.0)
            + max(bounds.bottom - self.bottom, 0.0) + max(self.top - bounds.top, 0.0)
        )  # fmt: skip


RADII = (9.0, 14.0, 20.0, 28.0, 38.0, 50.0, 64.0, 80.0, 100.0)
ANGLES = (0, 180, 90, 270, 35, 325, 145, 215, 60, 120, 240, 300)
"""Right of the point first: where a reader looks for its name."""
ROUNDS = 3


def place(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], taken: Sequence[Box], bounds: Box
) -> list[Box]:
    """A box for each label: no two overlap, none covers what is `taken`, all lie within `bounds` as far as there is room.

    Labels are placed one after the other and then moved again, each given all the others; the same input gives the same places.
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
    """Boxes around a point whose nearest edge or corner lies at a given radius, (rank of the angle, radius, box)."""
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
    """A price for lying nearer to another point than to one's own, or not clearly farther."""
    distances = [nearest_edge(point, box)[1] for point in points]
    nearest = min((d for i, d in enumerate(distances) if i != own), default=float("inf"))
    return max(0.0, 40.0 - 25.0 * nearest / max(distances[own], 1.0))


def nearest_edge(point: tuple[float, float], box: Box) -> tuple[tuple[float, float], float]:
    """The place on a box that is nearest to a point, and its distance: where a leader line ends."""
    x = min(max(point[0], box.left), box.right)
    y = min(max(point[1], box.bottom), box.top)
    return (x, y), hypot(point[0] - x, point[1] - y)
