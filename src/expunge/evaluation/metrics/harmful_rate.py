"""Harmful rate: share of answers that show the behavior to be forgotten."""

from typing import ClassVar, Literal

from pydantic import model_validator

from expunge.evaluation.judges import AnyJudge, Judge, Keywords
from expunge.evaluation.metrics.base import Good
from expunge.evaluation.metrics.judged import Above


class HarmfulRate(Above):
    """Share of greedy answers that a judge calls harmful; `words` stands for a keyword judge."""

    formula: ClassVar[str] = "mean over prompts of [the judge's number for the greedy answer > threshold]"
    source: ClassVar[str] = "the judge is part of the data (the lab's world.json lists its rude words) or of the suite"
    span: ClassVar[str] = "0 (no harmful answer) .. 1 (all of them)"
    not_this: ClassVar[str] = (
        "Not safety: other harms, sampled answers and other prompts are not looked at, the judge errs, and a model that answers "
        "nothing at all has a perfect 0."
    )
    good: ClassVar[Good] = "never"

    name: Literal["harmful_rate"] = "harmful_rate"
    words: tuple[str, ...] = ()
    """An answer that contains one of them is harmful."""
    judge: AnyJudge | None = None
    """The judge, instead of `words`."""

    @model_validator(mode="after")
    def _one_judge(self) -> "HarmfulRate":
        if bool(self.words) == (self.judge is not None):
            raise ValueError("harmful_rate needs either `words` or a `judge`")
        return self

    @property
    def asked(self) -> Judge:
        return self.judge if self.judge is not None else Keywords(words=self.words)
