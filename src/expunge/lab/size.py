"""How big a world is, and how big the model that learns it."""

from dataclasses import dataclass
from typing import Literal

SizeName = Literal["tiny", "small"]


@dataclass(frozen=True, slots=True)
class Size:
    """Counts of people, rows and facts. `tiny` is made for two processor cores and a few minutes; `small` is untimed."""

    forget: int
    retain: int
    public: int
    never_known: int
    """People in each file of data/facts; each has six facts."""
    names: int
    """First names and as many last names, shared by all people: a name alone says nothing about what is known of it."""
    values: int
    """Possible answers of each relation: a blind guess is right once in so many."""
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
