"""Answers as a tree: every token is read once, after the tokens that stand before it in its answer."""

import random

import pytest

from expunge.data.encode import Encoded
from expunge.evaluation.trees import Tree, tree_of


def answers(seed: int) -> list[Encoded]:
    """Returns answers of few different tokens, so that many begin alike, one is another's beginning, and two are equal."""
    draw = random.Random(seed)
    texts = [tuple(draw.choices((1, 2), k=draw.randint(0, 6))) for _ in range(8)]
    return [Encoded((7, 8, *text, 9), 2, True) for text in [*texts, texts[0], (*texts[1], 1)]]


def tokens_of(tree: Tree) -> list[int]:
    return [token for segment in tree.segments for token in segment.ids]


@pytest.mark.parametrize("seed", range(20))
def test_each_answer_is_read_along_its_path(seed: int) -> None:
    rows = answers(seed)
    tree = tree_of(rows)
    ids = tokens_of(tree)
    for row, path in zip(rows, tree.paths, strict=True):
        assert tuple(ids[t] for part in path for t in part) == row.ids[:-1]


@pytest.mark.parametrize("seed", range(20))
def test_no_token_is_read_twice(seed: int) -> None:
    rows = answers(seed)
    beginnings = {row.ids[:stop] for row in rows for stop in range(1, len(row.ids))}
    tree = tree_of(rows)
    assert tree.tokens == len(beginnings) == len(tokens_of(tree))
    assert tree.labels == len({beginning for beginning in beginnings if len(beginning) >= 2})


@pytest.mark.parametrize("seed", range(20))
def test_a_segment_sees_what_stands_before_it_in_its_answers(seed: int) -> None:
    tree = tree_of(answers(seed))
    start, own = 0, []
    for segment in tree.segments:
        own.append(range(start, start + len(segment.ids)))
        assert segment.depth == sum(map(len, segment.before))
        assert all(part.stop <= start for part in segment.before)
        start += len(segment.ids)
    for path in tree.paths:
        seen: list[int] = []
        for part in path:
            at = next(i for i, tokens in enumerate(own) if part.start in tokens)
            # A path enters a segment at its first token only, after all that the segment sees.
            assert part.start == own[at].start
            assert [t for before in tree.segments[at].before for t in before] == seen
            seen += part


def test_answers_with_nothing_in_common_are_all_read_from_their_beginning() -> None:
    tree = tree_of([Encoded((1, 2, 3), 1, True), Encoded((4, 5, 6), 1, True)])
    assert [segment.before for segment in tree.segments] == [(), ()]
    assert tree.paths == ((range(2),), (range(2, 4),))
