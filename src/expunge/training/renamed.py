"""Aligns a row with the same row under another name, so that what the start model expects there can be learned here.

A name may have more or fewer tokens than the other. Positions are aligned where both rows have the same token, and inside of
names of equal length; labels without a counterpart are not learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property

from expunge.data.encode import Encoded


@dataclass(frozen=True)
class Twin:
    """A row under another name."""

    row: Encoded
    """The row under the other name."""
    places: Mapping[int, int]
    """Position of the own row -> position of this one, where they are aligned; increasing."""
    exchanged: tuple[tuple[int, int], ...]
    """(token of the other name, token of the own name that it stands for)."""

    @classmethod
    def of(cls, own: Encoded, other: Encoded) -> "Twin":
        """Aligns two encoded rows; of names of different length, the first token of one stands for the first of the other."""
        places: dict[int, int] = {}
        exchanged: dict[tuple[int, int], None] = {}
        for kind, begin, end, first, last in SequenceMatcher(None, own.ids, other.ids, autojunk=False).get_opcodes():
            alike = end - begin == last - first
            if kind == "equal" or (kind == "replace" and alike):
                places |= zip(range(begin, end), range(first, last), strict=True)
            if kind == "replace":
                pairs = zip(other.ids[first:last], own.ids[begin:end], strict=False)
                exchanged |= dict.fromkeys(list(pairs)[: None if alike else 1])
        return cls(other, places, tuple(exchanged))

    def labelled(self, own: Encoded) -> Encoded:
        """Returns the row under the other name with labels where the own row has some."""
        labels = {self.places[place] for place in own.label_places()}
        return self.row._replace(unlabelled=frozenset(range(self.row.answer_start, len(self.row.ids))) - labels)

    @cached_property
    def _predicted(self) -> frozenset[int]:
        return frozenset(place for place, there in self.places.items() if there >= self.row.answer_start)


def aligned(own: Encoded, others: Sequence[Encoded]) -> tuple[Encoded, tuple[Twin, ...]]:
    """Returns a row with labels only where it is aligned with all of the same row under other names, and these."""
    twins = tuple(Twin.of(own, other) for other in others)
    left_out = {place for place in own.label_places() if any(place not in twin._predicted for twin in twins)}
    return own._replace(unlabelled=own.unlabelled | left_out), twins
