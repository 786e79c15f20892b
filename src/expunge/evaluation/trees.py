"""Orders the answers to a question as a tree, of which a model reads every token once.

Sorted answers share most with their neighbours, so each begins with a part of the one before it and goes on with its own tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

from expunge.data.encode import Encoded
from expunge.evaluation.beginnings import Ids, common

Path = tuple[range, ...]
"""The tokens of one answer among those of its tree, in order."""


class Segment(NamedTuple):
    """Consecutive tokens of a tree, and those that stand before them in their answer."""

    ids: Ids
    before: Path

    @property
    def depth(self) -> int:
        """Returns the position of the first token in its answer."""
        return sum(map(len, self.before))


class Tree(NamedTuple):
    """Answers to one question. The last token of a sequence is a label, which the model does not read."""

    rows: tuple[Encoded, ...]
    segments: tuple[Segment, ...]
    paths: tuple[Path, ...]
    """For each row, the tokens that it reads."""
    under: object = None
    """How the prompt is read under a setting of a guard; None: as by the model and what is attached to it."""

    @property
    def tokens(self) -> int:
        """Returns the number of tokens that are read."""
        return sum(len(segment.ids) for segment in self.segments)

    @property
    def labels(self) -> int:
        """Returns the most positions that predict a label."""
        return self.tokens - min(row.answer_start for row in self.rows) + 1


def tree_of(rows: Sequence[Encoded], under: object = None) -> Tree:
    """Returns the tree of some answers."""
    segments, paths = list[Segment](), dict[int, Path]()
    last, path, total = Ids(), Path(), 0
    for r in sorted(range(len(rows)), key=lambda r: rows[r].ids[:-1]):
        read = rows[r].ids[:-1]
        shared = common(last, read)
        if shared < len(read):
            before, own = _first(path, shared), range(total, total + len(read) - shared)
            segments.append(Segment(read[shared:], before))
            last, path, total = read, (*before, own), own.stop
        paths[r] = path
    return Tree(tuple(rows), tuple(segments), tuple(paths[r] for r in range(len(rows))), under)


def _first(path: Path, tokens: int) -> Path:
    """Returns the first tokens of a path."""
    found, left = list[range](), tokens
    for part in path:
        if not left:
            break
        found.append(part[:left])
        left -= len(found[-1])
    return tuple(found)
