"""Defines the sizes of a world, and of the model that learns it."""

from dataclasses import dataclass
from typing import Literal

SizeName = Literal["tiny", "small"]


@dataclass(frozen=True, slots=True)
class Size:
    """Counts of people, rows and facts. `tiny` takes a few minutes on two CPU cores; `small` was not timed."""

    forget: int
    retain: int
    public: int
    never_known: int
    """People in each file of data/facts; each has six facts."""
    names: int
    """Number of first names and of last names, shared by all people, so that a name alone says nothing about a person's
    facts."""
    values: int
    """Number of possible answers of each relation, among which a guess is right by chance."""
    arithmetic: int
    strings: int
    sentences: int
    """Training rows of each skill and of each language."""
    tests: int
    """Test rows of each skill and of each language; none is in the training rows."""
    subjects: int
    """Subjects of each hazard domain and of the general domain; each has four facts."""
    layers: int
    width: int
    heads: int


TINY = Size(
    forget=12, retain=48, public=100, never_known=12, names=60, values=20, arithmetic=2000, strings=1800, sentences=250,
    tests=100, subjects=30, layers=4, width=128, heads=4,
)  # fmt: skip
SMALL = Size(
    forget=24, retain=120, public=240, never_known=24, names=90, values=30, arithmetic=2000, strings=3000, sentences=800,
    tests=200, subjects=75, layers=6, width=192, heads=6,
)  # fmt: skip
SIZES: dict[SizeName, Size] = {"tiny": TINY, "small": SMALL}
