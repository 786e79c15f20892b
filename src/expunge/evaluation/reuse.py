"""Keeps the results of prompts that a guard leaves alone, so that other settings of the guard need not compute them again.

A guard that decides by prompt changes nothing about the prompts that it lets pass. Its settings that share the decisions
therefore share these results, and a study of many settings costs little more than the prompts that are acted on. Settings that
change a prompt in the same way share the results of the others too.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from expunge.guarding.forward_pass import Counts

Result = TypeVar("Result")
Ids = tuple[int, ...]


class Reuse:
    """Results of passed prompts, for several evaluations of one model under guards with the same decisions."""

    def __init__(self, passes: Callable[[Ids], bool]) -> None:
        """passes: whether the guards leave a prompt, given as tokens, unchanged"""
        self._passes = passes
        self._known: dict[Hashable, Any] = {}
        self.counts: Counts | None = None
        """Of the guard that is attached now: prompts whose results are reused count as decided, or acted on."""
        self.effect: Hashable = None
        """What the guard does to the prompts that it changes: their results are reused under the same effect; None: never."""

    def of(
        self,
        items: Sequence[Any],
        keys: Sequence[Hashable],
        prompts: Sequence[Ids],
        compute: Callable[[Sequence[Any]], Sequence[Result]],
        rows: Sequence[int] | None = None,
    ) -> list[Result]:
        """Returns the result of each item; `compute` is called once with those that are not known.

        keys      by which an item is known again, with everything that its result depends on
        prompts   the prompt of each item
        rows      how many rows the model reads for each item; default: one
        """
        passes = [self._passes(prompt) for prompt in prompts]
        full = [(None if passed else self.effect, key) for passed, key in zip(passes, keys, strict=True)]
        kept = [passed or self.effect is not None for passed in passes]
        new = [i for i, key in enumerate(full) if not (kept[i] and key in self._known)]
        if self.counts is not None:
            spared = {i: 1 if rows is None else rows[i] for i in set(range(len(items))) - set(new)}
            self.counts.decided += sum(spared.values())
            self.counts.acted += sum(count for i, count in spared.items() if not passes[i])
        found = dict(zip(new, compute([items[i] for i in new]), strict=True)) if new else {}
        self._known |= {full[i]: result for i, result in found.items() if kept[i]}
        return [found[i] if i in found else self._known[full[i]] for i in range(len(items))]
