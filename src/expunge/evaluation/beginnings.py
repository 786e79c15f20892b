"""Groups the answers to a question by what they have in common at their beginning, which a model need read only once."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from expunge.data.encode import Encoded
from expunge.evaluation.shortcuts import Shortcuts

Ids = tuple[int, ...]
Answers = Sequence[Encoded]
"""The answers to one question, with the prompt. The last token of a sequence is a label and is never read by the model."""

PART = 4
"""What a group costs besides its tokens, in tokens."""


class Group(NamedTuple):
    """Some answers to one question with the same beginning; `shared` is what the model reads in common."""

    rows: tuple[Encoded, ...]
    shared: Ids
    under: object = None
    """How the prompt is read under a setting of a guard; None: as by the model and what is attached to it."""

    @property
    def ends(self) -> list[Ids]:
        """Returns what is read after the common beginning, for each answer."""
        return [row.ids[len(self.shared) : -1] for row in self.rows]

    @property
    def first(self) -> int:
        """Returns the first position in the common beginning that predicts a label of some answer."""
        return min(min(row.answer_start for row in self.rows) - 1, len(self.shared))

    @property
    def begun(self) -> int:
        """Returns the positions of the beginning that predict a label."""
        return len(self.shared) - self.first

    @property
    def more(self) -> int:
        """Returns the number of tokens of all ends together."""
        return sum(map(len, self.ends))

    @property
    def tokens(self) -> int:
        """Returns the number of tokens that are read, each end for itself."""
        return len(self.shared) + self.more


def group_of(rows: Sequence[Encoded], under: object = None) -> Group:
    """Returns a group of answers with the longest beginning that all of them read."""
    read = [row.ids[:-1] for row in rows]
    first = min(read)
    return Group(tuple(rows), first[: common(first, max(read))], under)  # what the first and the last in order share, all share


def beginnings(answers: Answers, can: Shortcuts) -> list[list[int]]:
    """Returns the indices of answers that are computed together: those that read the same tokens, or share a beginning; in packs
    all of them, up to rows that would change the others.

    Five answers that begin with the same ten tokens, and one that does not, are two groups where ten tokens read four times less
    outweigh a prompt that is read twice: the partition with the fewest tokens.
    """
    same: dict[Ids, list[int]] = {}
    for index, answer in enumerate(answers):
        same.setdefault(answer.ids[:-1], []).append(index)
    alone = [ids for ids in same if not can.shares or (can.longest is not None and len(ids) > can.longest)]
    sharing = same.keys() - set(alone)
    if can.packed:
        parts: list[Sequence[Ids]] = [sorted(sharing)] if sharing else []  # every token of a tree is read once
    else:
        parts = _fewest_tokens(sorted(sharing))
    return [[index for ids in part for index in same[ids]] for part in (*([ids] for ids in alone), *parts)]


def _fewest_tokens(rows: Sequence[Ids]) -> list[Sequence[Ids]]:
    """Cuts distinct rows, sorted, into runs with a common beginning, so that as few tokens as possible are read.

    Sorted rows with a common beginning follow one another, and what a run has in common is the least that two neighbours have.
    """
    alike = [common(a, b) for a, b in pairwise(rows)]
    total = list(accumulate(map(len, rows), initial=0))
    fewest, cut = [0], [0]
    for stop in range(1, len(rows) + 1):
        shared, best, where = len(rows[stop - 1]), fewest[-1] + len(rows[stop - 1]) + PART, stop - 1
        for start in range(stop - 2, -1, -1):
            shared = min(shared, alike[start])
            if not shared:
                break
            cost = fewest[start] + total[stop] - total[start] - (stop - start - 1) * shared + PART
            if cost <= best:
                best, where = cost, start
        fewest.append(best)
        cut.append(where)
    found, stop = [], len(rows)
    while stop:
        found.append(rows[cut[stop] : stop])
        stop = cut[stop]
    return found[::-1]


def common(a: Ids, b: Ids) -> int:
    """Returns the length of the common beginning, by bisection: slices are compared much faster than tokens one by one."""
    most = min(len(a), len(b))
    return bisect_left(range(1, most + 1), True, key=lambda length: a[:length] != b[:length])
