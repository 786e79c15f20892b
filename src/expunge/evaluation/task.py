"""What is asked: tasks, and suites of them. Plain values; nothing here runs a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    """Some examples, and the metrics to take on each."""

    name: str
    examples: tuple[Example, ...]
    metrics: tuple[Metric, ...]
    role: Role
    """What the examples are to the request; decides which direction is good."""
    secret: bool = True
    """Prompts, responses and answers stay out of the sample file unless the caller asks for them."""
    max_new_tokens: int = 200
    """Longest greedy answer, for the metrics that read one."""
    shown: int = 0
    """So many examples get a greedy answer in the sample file even if no metric needs one (where texts may be shown)."""

    verbatim: bool = False
    """Prompts are a benchmark's whole text: no template stands around them, answers bring their own leading space and keep
    their blanks, and what is too long for the model loses its beginning, as in lm-eval."""
    stop: tuple[str, ...] = ()
    """A greedy answer ends before the first of these texts."""
    expected_tokens: int | None = None
    """Written answers are compared with so many tokens of the response only (MUSE: as many as may be written)."""
    draws: int = 0
    """So many sampled answers to each prompt, for the metrics that look at the worst of several."""
    nucleus: Nucleus = USUAL
    """How they are drawn."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(need for metric in self.metrics for need in metric.needs)

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Everyone who has to be asked, once."""
        return tuple(dict.fromkeys(judge for metric in self.metrics for judge in metric.judges))

    def judges_of(self, texts: Literal["generated", "sampled"]) -> tuple[Judge, ...]:
        """Those who are asked about the sampled answers, and those who are asked about the others."""
        mine = [metric for metric in self.metrics if ("sampled" in metric.needs) == (texts == "sampled")]
        return tuple(dict.fromkeys(judge for metric in mine for judge in metric.judges))

    def needs_of(self, example: Example) -> frozenset[Need]:
        """What has to be found out about one example."""
        return frozenset(need for metric in self.metrics for need in metric.needs_of(example))

    def settings(self) -> list[Any]:
        """Everything here that its samples depend on, as plain data: the name, a fingerprint of the examples, the metrics."""
        return [
            *(self.name, fingerprint(self.examples), [metric.model_dump(mode="json") for metric in self.metrics]),
            *(self.max_new_tokens, self.shown, self.secret, self.role, self.verbatim, self.stop, self.expected_tokens),
            *(self.draws, self.nucleus.model_dump(mode="json")),
        ]


class Results:
    """The samples of all tasks of a suite, by task and metric: what suite-wide scores are computed from."""

    def __init__(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        self._values: dict[tuple[str, str], list[tuple[str, float]]] = {}
        for task, rows in samples.items():
            for row in rows:
                if row.value is not None:
                    self._values.setdefault((task, row.metric), []).append((row.id, row.value))

    def by_id(self, task: str, metric: str) -> Mapping[str, float]:
        """Example id -> value, without the unscored."""
        return dict(self._values.get((task, metric), ()))

    def values(self, task: str, metric: str) -> Floats:
        """The scored values in the order of the task's examples; an example that is there twice counts twice."""
        return np.array([value for _, value in self._values.get((task, metric), ())], dtype=np.float64)


class Outside(Protocol):
    """Another program's tasks. It gets the engine, so that what hooks into the model is seen and nothing is loaded twice."""

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
        """Task -> samples, and scores.

        room      tokens that the model takes
        limit     the first so many questions of each task
        finished  where results of finished tasks are kept, and what the model is
        show      write texts into the samples
        """


@dataclass(frozen=True)
class Suite:
    """Named tasks, and the scores that are taken over all of them together."""

    name: str
    """The stem of SUITE.json. Another reading of a metric (`compat`) is another suite, so that scores of different
    definitions never stand under one name."""
    tasks: tuple[Task, ...]
    summarize: Callable[[Results], list[Score]]
    outside: "Outside | None" = None
    """Tasks that another program reads, asks and scores, after those above."""
