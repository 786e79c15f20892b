"""Keeps the results of prompts that a guard leaves alone, so that other settings of the guard need not compute them again.

A guard that decides by prompt changes nothing about the prompts that it lets pass. Its settings that share the decisions
therefore share these results, and a study of many settings costs little more than the prompts that are acted on. Settings that
change a prompt in the same way share the results of the others too, and those of settings to come are computed in the same
batches: few prompts at a time would be read several times as slowly.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from expunge.guarding.forward_pass import Counts

Result = TypeVar("Result", covariant=True)
Known = TypeVar("Known")
Ids = tuple[int, ...]

AT_ONCE = 512
"""Changed items that are computed together, if the settings to come have so many. More would not be faster, and a run that is
killed would lose more."""


class Compute(Protocol[Result]):
    """Interface to what computes results: of each item under the guard's setting for it, None for the attached one."""

    def __call__(self, items: Sequence[Any], /, *, settings: Sequence[object]) -> Sequence[Result]: ...


class Change(NamedTuple):
    """One setting of a guard: its effect, and how it reads each prompt that it changes."""

    effect: Hashable
    """Settings with the same effect share results."""
    under: Callable[[Ids], object]
    """How a prompt is read: what `compute` is given as its setting."""


def attached(effect: Hashable) -> Change:
    """Returns the change that an attached guard makes by itself."""
    return Change(effect, lambda _: None)


class Reuse:
    """Results for several evaluations of one model under settings of its guard that decide alike."""

    def __init__(self, passes: Callable[[Ids], bool], *, counted: bool = True) -> None:
        """
        passes    whether the guards leave a prompt, given as tokens, unchanged
        counted   a guard is attached and counts the prompts that the model reads; otherwise all are counted here
        """
        self._passes, self._counted = passes, counted
        self._known: dict[Hashable, Any] = {}
        self._made: dict[Hashable, Any] = {}
        self.counts: Counts | None = None
        """Of the guard that is attached now: prompts whose results are reused count as decided, or acted on."""
        self.now: Change | None = None
        """The setting that is evaluated; None: nothing is known about it, and results of prompts that it changes are never
        reused."""
        self.ahead: Sequence[Change] = ()
        """Settings whose results will be asked for later, in this order."""
        self._computed = False

    def of(
        self,
        items: Sequence[Any],
        keys: Sequence[Hashable],
        prompts: Sequence[Ids],
        compute: Compute[Result],
        rows: Sequence[int] | None = None,
    ) -> list[Result]:
        """Returns the result of each item; `compute` is called once with those that are not known.

        keys      by which an item is known again, with everything that its result depends on
        prompts   the prompt of each item
        rows      how many rows the model reads for each item; default: one
        """
        passes = [self._passes(prompt) for prompt in prompts]
        effect = object() if self.now is None else (self.now.effect,)
        full = [(None if passed else effect, key) for passed, key in zip(passes, keys, strict=True)]
        new = [i for i, key in enumerate(full) if key not in self._known]
        if self.counts is not None:
            spared = {i: 1 if rows is None else rows[i] for i in set(range(len(items))) - set(new if self._counted else ())}
            self.counts.decided += sum(spared.values())
            self.counts.acted += sum(count for i, count in spared.items() if not passes[i])
        wanted: dict[Hashable, tuple[int, object]] = {full[i]: (i, self.under(prompts[i])) for i in new}
        changed = [i for i in new if not passes[i]]
        for ahead in self.ahead[: -(-AT_ONCE // len(changed)) - 1] if changed else ():
            for i in changed:
                key = ((ahead.effect,), keys[i])
                if key not in self._known and key not in wanted:
                    wanted[key] = (i, ahead.under(prompts[i]))
        if wanted:
            self._computed = True
            results = compute([items[i] for i, _ in wanted.values()], settings=[setting for _, setting in wanted.values()])
            self._known |= zip(wanted, results, strict=True)
        return [self._known[key] for key in full]

    def under(self, prompt: Ids) -> object:
        """Returns how a prompt is read under the setting that is evaluated; None: as by the model and what is attached to it."""
        return None if self.now is None or self._passes(prompt) else self.now.under(prompt)

    def has_computed(self) -> bool:
        """Returns whether anything was computed since the last call: what was not need not be saved until the end."""
        found, self._computed = self._computed, False
        return found

    def made(self, key: Hashable, make: Callable[[], Known]) -> Known:
        """Returns what `make` returned when it was first called with this key, which holds everything that it depends on."""
        if key not in self._made:
            self._made[key] = make()
        found: Known = self._made[key]
        return found
