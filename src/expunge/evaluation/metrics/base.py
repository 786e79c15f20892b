"""What a metric is: a frozen value with one pure function from what is known about one example to one number.

A metric never runs the model. It says what it needs; the engine computes each needed sequence once for all metrics.
A new metric is one file here and one line in the closed list of `metrics/__init__.py`.
"""

from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from expunge.data.example import Example

Floats = NDArray[np.float64]

Role = Literal["forget", "retain", "neutral"]
"""What a task's examples are to the request. It decides which direction is good."""

Good = Literal["knowledge", "always", "never"]

Need = Literal["answer", "paraphrases", "perturbed", "choices", "generated"]
"""Teacher-forced statistics of the response, of its other wordings, of the wrong responses and of the choices, or the
text that the model writes when asked the prompt."""


class TokenStats(NamedTuple):
    """One teacher-forced answer of n tokens, in order."""

    logp: NDArray[np.float32]
    """Natural log-probability of each answer token given the prompt and the true answer tokens before it."""
    hit: NDArray[np.bool_]
    """Whether the answer token is the model's most probable one at its place."""
    has_end: bool
    """Whether the last of the tokens is the end token."""

    def without_end(self) -> "TokenStats":
        """The tokens of the text alone."""
        return TokenStats(self.logp[:-1], self.hit[:-1], False) if self.has_end else self

    def mean_logp(self) -> float:
        """Mean log-probability per token: the logarithm of the length-normalized probability P(a|q)^(1/|a|)."""
        return float(self.logp.mean(dtype=np.float64))


NOTHING = TokenStats(np.zeros(0, np.float32), np.zeros(0, np.bool_), False)


class Row(NamedTuple):
    """All that is known about one example. What no metric of the task needs is empty."""

    example: Example
    answer: TokenStats = NOTHING
    paraphrases: tuple[TokenStats, ...] = ()
    perturbed: tuple[TokenStats, ...] = ()
    choices: tuple[TokenStats, ...] = ()
    generated: str | None = None
    """None when the model was not asked; it may well answer with nothing."""
    cut: bool = False
    """The beginning of the prompt was left out, because the model takes no more tokens (verbatim tasks only)."""


class Unscored(NamedTuple):
    """Why there is no number. Never a silent zero."""

    reason: str


class Metric(BaseModel):
    """Fields are the settings of the metric; class attributes explain it (`expunge suites` prints them)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    formula: ClassVar[str]
    source: ClassVar[str]
    """Who defined it so."""
    span: ClassVar[str]
    """The range of its values, with the meaning of the ends."""
    not_this: ClassVar[str]
    """What it is not: the conclusion that readers draw from it and should not."""
    good: ClassVar[Good]
    """High values are good where knowing is good (on retain, not on forget), or always, or never."""

    @classmethod
    def metric_name(cls) -> str:
        """The word in scores and in YAML."""
        name: str = cls.model_fields["name"].default
        return name

    @property
    def needs(self) -> frozenset[Need]:
        """What the engine has to find out about each example."""
        return frozenset({"answer"})

    def needs_of(self, example: Example) -> frozenset[Need]:
        """Which of `needs` this example has a use for."""
        return self.needs

    def score(self, row: Row) -> float | Unscored:
        """The value of one example. `row` holds what `needs_of` names."""
        raise TypeError(f"{type(self).__name__} defines no score")

    def reported(self, values: Floats, role: Role) -> Floats:
        """What is averaged over a task, where that is not the value itself."""
        return values

    def higher_is_better(self, role: Role) -> bool | None:
        """The direction of good on a task with this role; None where neither is a goal."""
        if self.good == "knowledge":
            return {"forget": False, "retain": True, "neutral": None}[role]
        return self.good == "always"


NO_ANSWER = Unscored("the model was not asked: raw text has no prompt")


def unscorable(*answers: TokenStats) -> Unscored | None:
    """Why nothing can be said about these answers: one has no tokens, or the model is broken. None when all is well."""
    if not all(len(answer.logp) for answer in answers):
        return Unscored("the response has no tokens besides the end token")
    if any(np.isnan(answer.logp).any() for answer in answers):
        return Unscored("the model's log-probabilities are not numbers")
    return None
