"""Results are shared by settings of a guard for prompts that it lets pass, and for changed ones where the effect is the same."""

from collections.abc import Sequence
from typing import Any

from expunge.evaluation.reuse import Change, Reuse, attached
from expunge.guarding.forward_pass import Counts

PASSES, CHANGED = (1, 2), (3, 4)


def asked(reuse: Reuse) -> list[tuple[Any, object]]:
    """Returns what is computed when both prompts are asked for: the items, and how they are read."""
    computed = []

    def compute(items: Sequence[Any], *, settings: Sequence[object]) -> list[str]:
        computed.extend(zip(items, settings, strict=True))
        return [f"{item} {setting}" for item, setting in zip(items, settings, strict=True)]

    reuse.of(["a", "b"], ["a", "b"], [PASSES, CHANGED], compute)
    return computed


def test_changed_prompts_are_computed_again_unless_the_effect_is_known_to_be_the_same() -> None:
    reuse = Reuse(lambda ids: ids == PASSES)
    assert asked(reuse) == [("a", None), ("b", None)]
    assert asked(reuse) == [("b", None)]  # nothing was said about the setting
    reuse.now = attached("zero")
    assert asked(reuse) == [("b", None)]
    reuse.now = attached("noise")
    assert asked(reuse) == [("b", None)]
    reuse.now = attached("zero")
    assert asked(reuse) == []


def test_a_setting_says_how_a_changed_prompt_is_read_and_those_to_come_are_read_with_it() -> None:
    reuse = Reuse(lambda ids: ids == PASSES, counted=False)
    reuse.now, reuse.ahead = Change("x", lambda ids: ("x", ids)), [Change("y", lambda ids: ("y", ids))]
    assert asked(reuse) == [("a", None), ("b", ("x", CHANGED)), ("b", ("y", CHANGED))]
    reuse.now, reuse.ahead = Change("y", lambda ids: ("y", ids)), ()
    assert asked(reuse) == []


def test_what_no_guard_counts_is_counted_here() -> None:
    for counted, expected in ((True, (1, 0)), (False, (2, 1))):
        reuse = Reuse(lambda ids: ids == PASSES, counted=counted)
        reuse.now = attached("x")
        asked(reuse)
        reuse.counts, reuse.now = Counts(), attached("y")
        asked(reuse)
        assert (reuse.counts.decided, reuse.counts.acted) == expected
