"""Measures how far a run has forgotten, and decides when to stop, to undo part of a step, or to train on the retain rows only.

A run should forget until the forget answers are as improbable as those of rows that the model never saw (`stop_when_unknown`), or
as improbable as asked for (`until`), and then stop. A step often goes too far, so the weights are then set to a point between
those of the last check and the current ones at which the answers are as improbable as they should be. Most methods also lose some
of the retain set, and further steps of both terms would restore it only while forgetting too much. Therefore, whenever the retain
answers are less probable than allowed, only the retain terms of the loss are trained until the next check.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from expunge.data.encode import Encoded
from expunge.methods.training.base import TrainingMethod
from expunge.models.answer_levels import Levels, mean_answer_probability, part_levels
from expunge.training.data import Resting, TrainingData
from expunge.training.hardening.quantization import rounded
from expunge.training.settings import Training
from expunge.training.way import Way, copies

CLOSE = 0.01
"""Distance below the target probability that is tolerated."""
COPIED_CLOSE = 0.05
"""Distance by which the mean probability of words that are copied from the prompts may be above that of holdout answers."""
HALVINGS = 8
"""Largest number of halvings of the way between two checks; the point is then found to 1/256 of it."""
FAR = 0.25
"""Rows never seen are not measured while forget answers are still this much more probable than those were before the run."""


class Verdict(NamedTuple):
    stopped: str | None = None
    """Why the run ends, or None."""
    resting: bool = False
    """The terms that are not about the retain rows rest until the next check."""
    resting_rows: Resting = Resting()
    """Parts of forget rows that take no part in the steps until the next check."""


@dataclass
class Watch:
    """The measurements of a run that stops by itself: mean answer probabilities of forget, holdout and retain rows."""

    data: TrainingData
    device: torch.device
    least_kept: float | None
    """Retain probability at which a run may end; None if the method has no retain rows."""
    until: float | None
    """The forget probability to stop at; None if it is that of the holdout rows."""
    unseen: float
    """The target before the run: that of the holdout rows, or `until`."""
    unknown_share: float = 1.0
    """Share of the holdout rows' probability that the forget rows are to have."""
    by_row: bool = False
    """Forget rows rest one by one, and the words that their answers repeat from the prompts by themselves. The holdout answers
    are measured at each check: compared with their levels before the run, forgetting ended too soon in the lab
    (docs/gold.md)."""
    rounding: str | None = None
    """A format at which the forget answers have to be unknown as well."""
    marked: list[Tensor] = field(default_factory=list)
    """The trained weights at the last check, to which a step that went too far is partly reversed."""

    @classmethod
    def of(
        cls, model: nn.Module, method: TrainingMethod, data: TrainingData, training: Training, device: torch.device
    ) -> "Watch | None":
        """Creates it with the start model; None if the run does not stop by itself."""
        until = training.until if isinstance(training.until, float) else None
        if until is None and not training.stop_when_unknown:
            return None
        kept = None
        if "retain" in method.row_sets and data.retain and training.keep_retain > 0:
            kept = training.keep_retain * mean_answer_probability(model, data.retain, data.pad_id, device)
        by_row = training.stop_by_row and until is None
        holdout = own_words(data.holdout) if by_row else data.holdout
        unseen = until if until is not None else mean_answer_probability(model, holdout, data.pad_id, device)
        return cls(data, device, kept, until, unseen, training.unknown_share, by_row, training.quantization_aware)

    def mark(self, weights: Iterable[nn.Parameter]) -> None:
        """Stores the trained weights at a check."""
        self.marked = copies(weights)

    def check(self, model: nn.Module, weights: Sequence[nn.Parameter], *, resting: bool) -> Verdict:
        """Returns what to do next; if the steps since the last check went too far, `weights` are set to a point on their way.

        resting  those steps trained on the retain rows only, so they are not reversed
        """
        known, target = self._distance(model)
        if known < target - CLOSE and self.marked and not resting:
            known, target = self._step_back(model, weights)
        self.mark(weights)
        kept = None
        if self.least_kept is not None:
            kept = mean_answer_probability(model, self.data.retain, self.data.pad_id, self.device)
            if kept < self.least_kept:
                return Verdict(resting=True)
        rows, copied_known = self._unknown_rows(model) if self.by_row else (Resting(), False)
        if known > target or copied_known:
            return Verdict(resting_rows=rows)
        of = "" if self.unknown_share == 1 else f"{self.unknown_share:g} times "
        wanted = f"than was asked for ({target:g})" if self.until is not None else f"than {of}holdout answers ({target:.3f})"
        reason = f"forget answers (mean probability {known:.3f}) are no more probable {wanted}"
        return Verdict(reason if kept is None else f"{reason}, and retain answers are kept ({kept:.3f})")

    @cached_property
    def _forget(self) -> Sequence[Encoded]:
        return own_words(self.data.forget) if self.by_row else self.data.forget

    @cached_property
    def _holdout(self) -> Sequence[Encoded]:
        return own_words(self.data.holdout) if self.by_row else self.data.holdout

    def _distance(self, model: nn.Module) -> tuple[float, float]:
        """Returns (probability of the forget answers, its target); with a rounding, the larger one of both."""
        known = mean_answer_probability(model, self._forget, self.data.pad_id, self.device)
        if self.rounding is not None:
            with rounded(model, self.rounding):
                known = max(known, mean_answer_probability(model, self._forget, self.data.pad_id, self.device))
        if self.until is not None or known > self.unseen + FAR:
            return known, self.unseen
        never = mean_answer_probability(model, self._holdout, self.data.pad_id, self.device)
        return known, self.unknown_share * never

    def _unknown_rows(self, model: nn.Module) -> tuple[Resting, bool]:
        """Returns the parts of forget rows that rest, and whether copied words are still better known than those of holdout
        answers."""
        (own, copied), (never_own, never_copied) = (
            part_levels(model, rows, self.data.pad_id, self.device) for rows in (self.data.forget, self.data.holdout)
        )
        resting = Resting(unknown_rows(own, never_own, self.unknown_share), uncertain_rows(copied.logp_B, never_copied.logp_B))
        known, never = (levels.logp_B.exp().nanmean() for levels in (copied, never_copied))
        return resting, bool(known > never + COPIED_CLOSE)

    def _step_back(self, model: nn.Module, weights: Sequence[nn.Parameter]) -> tuple[float, float]:
        """Sets the weights to the first point on their way since the last check, to 1/256, at which the answers are unknown."""
        way = Way.since(weights, self.marked)
        low, high, found = 0.0, 1.0, self._distance(model)
        for _ in range(HALVINGS):
            share = (low + high) / 2
            way.place(share)
            known, target = self._distance(model)
            if known > target:
                low = share
            else:
                high, found = share, (known, target)
            if target - CLOSE <= known <= target:
                return known, target
        way.place(high)
        return found


def own_words(rows: Sequence[Encoded]) -> list[Encoded]:
    """Returns the rows without labels on words that their answers repeat from the prompts, such as a person's name: these carry
    no fact, and their probability differs between models that are equally ignorant."""
    return [row.labelled("own") for row in rows]


def uncertain_rows(forget_B: Tensor, holdout_M: Tensor) -> frozenset[int]:
    """Returns the rows that are at most `CLOSE` more probable than the holdout row of their rank, as in `unknown_rows`, and those
    without a value (nan)."""
    rows, known_M = (~forget_B.isnan()).nonzero().flatten(), holdout_M[~holdout_M.isnan()]
    uncertain = set(forget_B.isnan().nonzero().flatten().tolist())
    if len(rows) and len(known_M):
        below_B = forget_B[rows].exp() <= of_rank(forget_B[rows], known_M).exp() + CLOSE
        uncertain |= set(rows[below_B].tolist())
    return frozenset(uncertain)


def unknown_rows(forget: Levels, holdout: Levels, share: float = 1.0) -> frozenset[int]:
    """Returns the forget rows that are not answered word by word, and at most `share` times as probable as the holdout row of
    their rank.

    Holdout rows that are answered word by word are lucky guesses, and left out while there are others: they would let as many
    forget rows stay known.
    """
    wrong_M = holdout.logp_B[~holdout.greedy_B]
    level_B = of_rank(forget.logp_B, wrong_M if len(wrong_M) else holdout.logp_B)
    unknown_B = (forget.logp_B <= level_B + math.log(share)) & ~forget.greedy_B
    return frozenset(unknown_B.nonzero().flatten().tolist())


def of_rank(values_B: Tensor, others_M: Tensor) -> Tensor:
    """Returns for each of B values the quantile (i + 1/2) / B of the others, i its rank: where no value is above it, the two
    distributions are alike."""
    count = len(values_B)
    rank_B = torch.empty(count).scatter_(0, values_B.argsort(stable=True), torch.arange(count, dtype=torch.float32))
    return torch.quantile(others_M, (rank_B + 0.5) / count)
