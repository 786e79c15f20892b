"""What a metric is: a frozen value with one pure function from what is known about one example to one number.

A metric never runs the model. It says what it needs; the engine computes each needed sequence once for all metrics.
A new metric is one file here and one line in the closed list of `metrics/__init__.py`.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from expunge.data.example import Example
from expunge.described import Described
from expunge.evaluation.judges import Judge, Verdict
from expunge.evaluation.token_stats import NOTHING, TokenStats
from expunge.records import Role

Floats = NDArray[np.float64]

Good = Literal["knowledge", "always", "never"]

Need = Literal[
    "answer", "paraphrases", "perturbed", "choices", "generated", "sampled", "distribution", "gradient", "gradient_without_last"
]
"""Teacher-forced statistics of the response, of its other wordings, of the wrong responses and of the choices; the text that
the model writes when asked the prompt, and the task's draws of it by sampling; `distribution`: those of the response with
`TokenStats.distribution`; `gradient`: the size of the loss gradient of the response (a backward pass
each); `gradient_without_last`: the same without the response's last token."""


class Row(NamedTuple):
    """All that is known about one example. What no metric of the task needs is empty."""

    example: Example
    answer: TokenStats = NOTHING
    paraphrases: tuple[TokenStats, ...] = ()
    perturbed: tuple[TokenStats, ...] = ()
    choices: tuple[TokenStats, ...] = ()
    generated: str | None = None
    """None when the model was not asked, or is broken; it may well answer with nothing."""
    broken: str | None = None
    """Why the model, though asked, has written nothing that could be read."""
    gradient_norm: float | None = None
    """Mean over parameter tensors of the L2 norm of the gradient of the response's mean loss."""
    gradient_norm_without_last: float | None = None
    """The same of the response without its last token; None where that leaves nothing."""
    cut: bool = False
    """The beginning of the prompt was left out, because the model takes no more tokens (verbatim tasks only)."""
    judged: Mapping[Judge, Verdict] = MappingProxyType({})
    """What the judges of the task's metrics said."""
    sampled: tuple[str, ...] = ()
    """Several answers to the prompt, drawn by sampling."""
    judged_samples: Mapping[Judge, tuple[Verdict, ...]] = MappingProxyType({})
    """What the judges said of each of these."""
    compared: str | None = None
    """The beginning of the response, where the task compares only so many of its tokens."""

    @property
    def expected(self) -> str:
        """What the written answer is compared with."""
        return self.example.response if self.compared is None else self.compared


class Unscored(NamedTuple):
    """Why there is no number. Never a silent zero."""

    reason: str


class Metric(Described):
    """Fields are the settings of the metric; class attributes explain it (`expunge suites` prints them)."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    formula: ClassVar[str]
    source: ClassVar[str]
    """Who defined it so."""
    span: ClassVar[str]
    """The range of its values, with the meaning of the ends."""
    not_this: ClassVar[str]
    """What it is not: the conclusion that readers draw from it and should not."""
    good: ClassVar[Good]
    """High values are good where knowing is good (on retain, not on forget), or always, or never."""
    stands_alone: ClassVar[bool] = True
    """Its average over one task says something. Where not, samples are kept and only scores over several tasks are made."""

    @classmethod
    def metric_name(cls) -> str:
        """The word in scores and in YAML."""
        name: str = cls.model_fields["name"].default
        return name

    @property
    def needs(self) -> frozenset[Need]:
        """What the engine has to find out about each example."""
        return frozenset({"answer"})

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Who has to be asked about the answers."""
        return ()

    def needs_of(self, example: Example) -> frozenset[Need]:
        """Which of `needs` this example has a use for."""
        return self.needs

    def score(self, row: Row) -> float | Unscored:
        """The value of one example. `row` holds what `needs_of` names."""
        raise TypeError(f"{type(self).__name__} defines no score")

    def reported(self, values: Floats, role: Role) -> Floats:
        """What is averaged over a task, where that is not the value itself."""
        return values

    def average(self, values: Floats) -> Floats:
        """The task's value from its samples' values, over the last axis."""
        return np.asarray(values.mean(axis=-1))

    def higher_is_better(self, role: Role) -> bool | None:
        """The direction of good on a task with this role; None where neither is a goal."""
        if self.good == "knowledge":
            return {"forget": False, "retain": True, "neutral": None, "control": None}[role]
        return self.good == "always"


class Overall(NamedTuple):
    """A score over several tasks, explained as a metric is."""

    question: str
    """What it answers."""
    formula: str
    source: str
    span: str
    not_this: str
    higher_is_better: bool | None
    """None where both sides of a goal are bad."""


NOT_ASKED = Unscored("the model was not asked: raw text has no prompt")
BROKEN = "the model's logits are not numbers (NaN or infinity), so that it says nothing"


def no_answer(row: Row) -> Unscored:
    """Why there is no written answer."""
    return NOT_ASKED if row.broken is None else Unscored(row.broken)


def unscorable(*answers: TokenStats) -> Unscored | None:
    """Why no number can be made of these answers; None when all is well.

    One of them has no tokens, or a log-probability that is no finite number: NaN where the model is broken, minus infinity where
    it gives a token of the answer no probability at all, of which there is no mean and no ratio.
    """
    if not all(len(answer.logp) for answer in answers):
        return Unscored("the response has no tokens besides the end token")
    if any(np.isnan(answer.logp).any() for answer in answers):
        return Unscored("the model's log-probabilities are not numbers")
    if not all(np.isfinite(answer.logp).all() for answer in answers):
        return Unscored("the model gives a token of the response no probability at all (its log-probability is minus infinity)")
    return None


def finite(value: float | Unscored) -> float | Unscored:
    """The last check of every value, whatever metric made it: what is not a finite number is not a score."""
    if isinstance(value, Unscored) or math.isfinite(value):
        return value
    return Unscored(f"the value is {value}, which is no finite number")
