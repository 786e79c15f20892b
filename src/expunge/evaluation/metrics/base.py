"""Defines the interface of metrics: frozen values with one pure function from the data of one example to a number.

A metric never runs the model. It declares what it needs; the engine computes each needed sequence once for all metrics.
A new metric is one file here and one line in the list of `metrics/__init__.py`.
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
    """The data of one example. What no metric of the task needs is empty."""

    example: Example
    answer: TokenStats = NOTHING
    paraphrases: tuple[TokenStats, ...] = ()
    perturbed: tuple[TokenStats, ...] = ()
    choices: tuple[TokenStats, ...] = ()
    generated: str | None = None
    """None if the model was not asked, or its logits were not numbers; the answer may be empty."""
    broken: str | None = None
    """Why the model, though asked, gave no readable answer."""
    gradient_norm: float | None = None
    """Mean over parameter tensors of the L2 norm of the gradient of the response's mean loss."""
    gradient_norm_without_last: float | None = None
    """The same of the response without its last token; None where that leaves nothing."""
    cut: bool = False
    """The beginning of the prompt, or of a text without one, was cut off, because the model takes no more tokens (verbatim tasks
    only)."""
    shortened: frozenset[Need] = frozenset()
    """Of what the end was cut off: teacher-forced texts longer than `max_length`, written answers without room for more."""
    unknown: frozenset[Need] = frozenset()
    """Of what the tokenizer does not know all words."""
    control: frozenset[Need] = frozenset()
    """Of what a text has a control token written out."""
    judged: Mapping[Judge, Verdict] = MappingProxyType({})
    """Verdicts of the judges of the task's metrics."""
    sampled: tuple[str, ...] = ()
    """Several answers to the prompt, drawn by sampling."""
    judged_samples: Mapping[Judge, tuple[Verdict, ...]] = MappingProxyType({})
    """Verdicts on each of these."""
    compared: str | None = None
    """The beginning of the response, if the task compares only that many of its tokens."""

    def verdicts(self, judge: Judge) -> tuple[Verdict, ...]:
        """Returns what a judge said of the row's answers, the greedy one and the sampled ones."""
        greedy = (self.judged[judge],) if judge in self.judged else ()
        return (*greedy, *self.judged_samples.get(judge, ()))

    @property
    def expected(self) -> str:
        """Returns the text that the generated answer is compared with."""
        return self.example.response if self.compared is None else self.compared


class Unscored(NamedTuple):
    """The reason why there is no number."""

    reason: str


class Metric(Described):
    """Base class of metrics. Fields are settings; class attributes explain the metric (`expunge suites` prints them)."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    formula: ClassVar[str]
    source: ClassVar[str]
    """Where it was defined."""
    span: ClassVar[str]
    """The range of its values, with the meaning of the ends."""
    not_this: ClassVar[str]
    """What it does not show: wrong conclusions that readers might draw from it."""
    good: ClassVar[Good]
    """`knowledge`: high values are good on retain tasks and bad on forget tasks; `always`: high values are good; `never`: low
    values are good."""
    stands_alone: ClassVar[bool] = True
    """Whether its average over one task is a score. If not, samples are kept, and only scores over several tasks are
    computed."""

    @classmethod
    def metric_name(cls) -> str:
        """Returns the name in scores and in YAML."""
        name: str = cls.__pydantic_fields__["name"].default
        return name

    @property
    def needs(self) -> frozenset[Need]:
        """Returns what the engine must compute for each example."""
        return frozenset({"answer"})

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Returns the judges that must read the answers."""
        return ()

    def needs_of(self, example: Example) -> frozenset[Need]:
        """Returns which of `needs` apply to this example."""
        return self.needs

    def score(self, row: Row) -> float | Unscored:
        """Computes the value of one example. `row` holds what `needs_of` returned."""
        raise TypeError(f"{type(self).__name__} defines no score")

    def said(self, row: Row) -> tuple[float, ...]:
        """Returns the judge's numbers, one for each answer that it read, where the value is made from them; empty otherwise."""
        return ()

    def reported(self, values: Floats, role: Role) -> Floats:
        """Returns the values that are averaged over a task, if they differ from the samples' values."""
        return values

    def average(self, values: Floats) -> Floats:
        """Computes the task's value from its samples' values, over the last axis."""
        return np.asarray(values.mean(axis=-1))

    def higher_is_better(self, role: Role) -> bool | None:
        """Returns the direction of good on a task with this role; None if neither is a goal."""
        if self.good == "knowledge":
            return {"forget": False, "retain": True, "neutral": None, "control": None}[role]
        return self.good == "always"


class Overall(NamedTuple):
    """A score over several tasks, explained as a metric is."""

    question: str
    """The question that it answers."""
    formula: str
    source: str
    span: str
    not_this: str
    higher_is_better: bool | None
    """None if deviations in both directions are bad."""


NOT_ASKED = Unscored("the model was not asked: raw text has no prompt")
BROKEN = "the model's logits are not numbers (NaN or infinity), so that it says nothing"


def no_answer(row: Row) -> Unscored:
    """Returns why there is no generated answer."""
    return NOT_ASKED if row.broken is None else Unscored(row.broken)


def unscorable(*answers: TokenStats) -> Unscored | None:
    """Returns why no number can be computed from these answers, or None.

    One of them has no tokens, or a log-probability that is not finite: NaN if the model is broken, minus infinity if a token has
    probability 0, so that means and ratios are undefined.
    """
    if not all(len(answer.logp) for answer in answers):
        return Unscored("the response has no tokens besides the end token")
    if np.isfinite(np.concatenate([answer.logp for answer in answers])).all():
        return None
    if any(np.isnan(answer.logp).any() for answer in answers):
        return Unscored("the model's log-probabilities are not numbers")
    return Unscored("the model gives a token of the response no probability at all (its log-probability is minus infinity)")


def finite(value: float | Unscored) -> float | Unscored:
    """Converts a value that is not finite to Unscored; applied to every metric."""
    if isinstance(value, Unscored) or math.isfinite(value):
        return value
    return Unscored(f"the value is {value}, which is no finite number")
