"""Which answers to a question are computed together: those that leave the fewest tokens to read."""

from itertools import combinations

from expunge.data.encode import Encoded
from expunge.evaluation.beginnings import PART, beginnings, group_of
from expunge.evaluation.shortcuts import Shortcuts

SHARING = Shortcuts(padding=True, left_padding=True, tree=True, cache=True, stepwise=True, packed=False, ragged=True)
PROMPT = (1, 2, 3)


def question(*ends: tuple[int, ...]) -> list[Encoded]:
    return [Encoded((*PROMPT, *end, 9), len(PROMPT), True) for end in ends]


def cost(answers: list[Encoded], parts: list[list[int]]) -> int:
    groups = [group_of([answers[a] for a in part]) for part in parts]
    return sum(len(group.shared) + sum(map(len, set(group.ends))) + PART for group in groups)


def partitions(items: list[int]) -> list[list[list[int]]]:
    if not items:
        return [[]]
    first, rest = items[0], items[1:]
    return [
        [[first, *chosen], *others]
        for count in range(len(rest) + 1)
        for chosen in combinations(rest, count)
        for others in partitions([item for item in rest if item not in chosen])
    ]


def test_no_other_partition_leaves_fewer_tokens() -> None:
    same = tuple(range(10, 22))
    answers = question((*same, 30), (*same, 31, 32), (40, 41), (*same, 30, 33), (40, 50, 51), (60,))
    assert cost(answers, beginnings(answers, SHARING)) == min(cost(answers, each) for each in partitions(list(range(6))))


def test_answers_that_go_on_alike_are_a_group_where_that_outweighs_a_prompt_read_twice() -> None:
    same = tuple(range(10, 30))
    answers = question((*same, 30), (40, 41), (*same, 31), (*same, 32))
    assert sorted(map(sorted, beginnings(answers, SHARING))) == [[0, 2, 3], [1]]
    answers = question((10, 30), (40, 41), (10, 31))
    assert sorted(map(sorted, beginnings(answers, SHARING))) == [[0, 1, 2]]


def test_answers_that_read_the_same_tokens_are_never_apart() -> None:
    answers = [row._replace(ids=(*row.ids[:-1], 5 + i)) for i, row in enumerate(question((10,), (10,), (11,)))]
    parts = beginnings(answers, SHARING._replace(tree=False, cache=False))
    assert sorted(map(sorted, parts)) == [[0, 1], [2]]


def test_in_packs_all_answers_are_together_up_to_rows_that_would_change_the_others() -> None:
    answers = question((10, 30), (40, 41), (10, 30), (10, 31, 32))
    packed = SHARING._replace(packed=True)
    assert sorted(map(sorted, beginnings(answers, packed))) == [[0, 1, 2, 3]]
    assert sorted(map(sorted, beginnings(answers, packed._replace(longest=5)))) == [[0, 1, 2], [3]]
