"""Defines tasks and suites: examples, and the metrics to compute on them. Nothing here runs a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from expunge.data.example import Example, fingerprint
from expunge.evaluation.judges import Judge
from expunge.evaluation.metrics.base import Floats, Metric, Need
from expunge.evaluation.nucleus import USUAL, Nucleus
from expunge.records import Role, Sample, Score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from expunge.evaluation.engine import Engine
    from expunge.evaluation.resume import Finished

SUITE = "suite"
"""The task name of scores over a whole suite."""


@dataclass(frozen=True)
class Task:
    """Examples, and the metrics to compute on each."""

    name: str
    examples: tuple[Example, ...]
    metrics: tuple[Metric, ...]
    role: Role
    """Role of the examples in the request, which decides which direction is good."""
    secret: bool = True
    """Prompts, responses and answers are left out of the sample file unless the caller asks for them."""
    max_new_tokens: int = 200
    """Longest greedy answer, for the metrics that read one."""
    shown: int = 0
    """Number of examples that get a greedy answer in the sample file even if no metric needs one (if texts may be shown)."""

    verbatim: bool = False
    """Prompts are a benchmark's complete texts, without a template; answers keep their leading and other spaces, and a prompt
    that is too long loses its beginning, as in lm-eval."""
    stop: tuple[str, ...] = ()
    """A greedy answer ends before the first of these texts."""
    expected_tokens: int | None = None
    """Generated answers are compared with this many tokens of the response only (MUSE: as many as are generated)."""
    draws: int = 0
    """Number of sampled answers to each prompt, for metrics of the worst of several."""
    nucleus: Nucleus = USUAL
    """How they are sampled."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(need for metric in self.metrics for need in metric.needs)

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Returns all judges of the task, each once."""
        return tuple(dict.fromkeys(judge for metric in self.metrics for judge in metric.judges))

    def judges_of(self, texts: Literal["generated", "sampled"]) -> tuple[Judge, ...]:
        """Returns the judges of the sampled answers, or of the others."""
        mine = [metric for metric in self.metrics if ("sampled" in metric.needs) == (texts == "sampled")]
        return tuple(dict.fromkeys(judge for metric in mine for judge in metric.judges))

    def needs_of(self, example: Example) -> frozenset[Need]:
        """Returns what must be computed about one example."""
        return frozenset(need for metric in self.metrics for need in metric.needs_of(example))

    def settings(self) -> list[Any]:
        """Returns everything that the samples depend on, as plain data: the name, a fingerprint of the examples, the metrics."""
        return [
            *(self.name, fingerprint(self.examples), [metric.model_dump(mode="json") for metric in self.metrics]),
            *(self.max_new_tokens, self.shown, self.secret, self.role, self.verbatim, self.stop, self.expected_tokens),
            *(self.draws, self.nucleus.model_dump(mode="json")),
        ]


class Results:
    """The samples of all tasks of a suite, by task and metric, from which suite-wide scores are computed."""

    def __init__(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        self._values: dict[tuple[str, str], list[tuple[str, float]]] = {}
        for task, rows in samples.items():
            for row in rows:
                if row.value is not None:
                    self._values.setdefault((task, row.metric), []).append((row.id, row.value))

    def by_id(self, task: str, metric: str) -> Mapping[str, float]:
        """Returns example id -> value, without unscored ones."""
        return dict(self._values.get((task, metric), ()))

    def values(self, task: str, metric: str) -> Floats:
        """Returns the scored values in the order of the task's examples; an example that occurs twice counts twice."""
        return np.array([value for _, value in self._values.get((task, metric), ())], dtype=np.float64)


class Outside(Protocol):
    """Interface to another program's tasks, which uses this library's engine and model."""

    def __call__(
        self,
        engine: "Engine",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        room: int,
        limit: int | None,
        finished: "Finished",
        show: bool,
        quiet: bool,
    ) -> tuple[dict[str, list[Sample]], list[Score]]:
        """Returns task -> samples, and scores.

        room      tokens that the model takes
        limit     only the first `limit` questions of each task
        finished  saved results of finished tasks
        show      write texts into the samples
        """


@dataclass(frozen=True)
class Suite:
    """Named tasks, and the scores over all of them."""

    name: str
    """The stem of SUITE.json. Another reading of a metric (`compat`) is another suite, so that scores of different
    definitions never stand under one name."""
    tasks: tuple[Task, ...]
    summarize: Callable[[Results], list[Score]]
    outside: "Outside | None" = None
    """Tasks that another program reads, asks and scores, after the others."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Option -> hash of the model whose scores it gives, to be compared with those of the model that is scored."""
