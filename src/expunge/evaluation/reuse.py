"""Keeps the results of prompts that a guard leaves alone, so that other settings of the guard need not compute them again.

A guard that decides by prompt changes nothing about the prompts that it lets pass. Its settings that share the decisions
therefore share these results, and a study of many settings costs little more than the prompts that are acted on.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from expunge.guarding.forward_pass import Counts

Result = TypeVar("Result")
Ids = tuple[int, ...]


class Reuse:
    """Results of passed prompts, for several evaluations of one model under guards with the same decisions."""

    def __init__(self, passes: Callable[[Ids], bool]) -> None:
        """passes: whether the guards let a prompt, given as tokens, pass unchanged"""
        self._passes = passes
        self._known: dict[Hashable, Any] = {}
        self.counts: Counts | None = None
        """Of the guard that is attached now: prompts whose results are reused count as decided."""

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
        new = [i for i, key in enumerate(keys) if not (passes[i] and key in self._known)]
        if self.counts is not None:
            spared = set(range(len(items))) - set(new)
            self.counts.decided += sum(1 if rows is None else rows[i] for i in spared)
        found = dict(zip(new, compute([items[i] for i in new]), strict=True)) if new else {}
        self._known |= {keys[i]: result for i, result in found.items() if passes[i]}
        return [found[i] if i in found else self._known[keys[i]] for i in range(len(items))]
