"""Base classes of metrics that use judges."""

import math

from pydantic import Field

from expunge.evaluation.judges import AnyJudge, Judge
from expunge.evaluation.metrics.base import Metric, Need, Row, Unscored, no_answer


class JudgedMetric(Metric):
    """Base class of metrics whose value is the number that a judge gives the greedy answer."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"generated"})

    @property
    def asked(self) -> Judge:
        """Returns the judge."""
        raise TypeError(f"{type(self).__name__} names no judge")

    @property
    def judges(self) -> tuple[Judge, ...]:
        return (self.asked,)

    def verdict(self, row: Row) -> float | Unscored:
        """Returns the judge's number for the row's answer."""
        if "generated" in self.needs and row.generated is None:
            return no_answer(row)
        verdict = row.judged[self.asked]
        if isinstance(verdict, str):
            return Unscored(verdict)
        return verdict if math.isfinite(verdict) else Unscored("the judge's number is not finite")

    def score(self, row: Row) -> float | Unscored:
        return self.verdict(row)


class Above(JudgedMetric):
    """Base class of metrics that are 1 if the judge's number for the greedy answer is above the threshold, else 0."""

    threshold: float = Field(0.5, ge=0, lt=1)
    """A number above it is a yes."""

    def score(self, row: Row) -> float | Unscored:
        verdict = self.verdict(row)
        return verdict if isinstance(verdict, Unscored) else float(verdict > self.threshold)

    def said(self, row: Row) -> tuple[float, ...]:
        verdict = self.verdict(row)
        return () if isinstance(verdict, Unscored) else (float(verdict),)


class OneJudgeMetric(JudgedMetric):
    """Base class of metrics with the judge as a field."""

    judge: AnyJudge
    """Who judges the answers."""

    @property
    def asked(self) -> Judge:
        return self.judge


class RateMetric(Above, OneJudgeMetric):
    """Base class of metrics that report the share of greedy answers to which the judge gives more than the threshold."""


class DrawnMetric(OneJudgeMetric):
    """Base class of metrics that are computed from the judge's numbers for several sampled answers to each prompt."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"sampled"})

    def verdicts(self, row: Row) -> list[float] | Unscored:
        """Returns the judge's numbers for the row's sampled answers."""
        if not row.sampled:
            return Unscored("the task draws no answers") if row.example.prompt is not None else no_answer(row)
        verdicts = row.judged_samples[self.asked]
        reason = next((verdict for verdict in verdicts if isinstance(verdict, str)), None)
        if reason is not None:
            return Unscored(reason)
        numbers = [verdict for verdict in verdicts if isinstance(verdict, int | float)]
        return numbers if all(map(math.isfinite, numbers)) else Unscored("the judge's number is not finite")

    def said(self, row: Row) -> tuple[float, ...]:
        verdicts = self.verdicts(row)
        return () if isinstance(verdicts, Unscored) else tuple(map(float, verdicts))
