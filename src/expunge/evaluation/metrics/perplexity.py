"""Perplexity of a text under the model, or of the model's text under another one."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import model_validator

from expunge.evaluation.comparing import SecondModel
from expunge.evaluation.judges import Judge
from expunge.evaluation.metrics.base import Floats, Good, Metric, Need, Row, Unscored, no_answer, unscorable
from expunge.records import Role


class Perplexity(Metric):
    """exp of the mean loss per token of the response (of the whole text, for raw text), its end token included. With `model`,
    under a second model instead: of the response, or of what this model wrote.

    Padding does not count. A task reports the geometric mean over
    texts, exp(mean of their mean losses); for texts of equal length that is the perplexity of the corpus.
    """

    formula: ClassVar[str] = "exp(-(1/n) sum over t of log p(x_t | x<t)); over a task exp(mean over texts of its logarithm)"
    source: ClassVar[str] = "Jelinek et al. 1977; the released code of ECO divides by the padded length instead"
    span: ClassVar[str] = "1 (every token foreseen) .. infinity; the size of the vocabulary = guessing"
    not_this: ClassVar[str] = (
        "Not comparable between tokenizers: it is per token. Not quality: fluent nonsense and endless repetition have a low one."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["perplexity"] = "perplexity"

    model: str | None = None
    """Folder or hub id of another model that reads the text, in its own format; default: the model itself."""
    of: Literal["response", "generated"] = "response"
    """Which text is read; `generated` needs a `model`."""
    verbatim: bool = False
    """The second model reads prompt and text as they are, without template and end token, and only the tokens of the text
    count, as fits completions. If they are too long for it, the beginning of the prompt is cut off."""

    @model_validator(mode="after")
    def _has_reader(self) -> "Perplexity":
        if self.of == "generated" and self.model is None:
            raise ValueError("perplexity of generated text needs a `model` that reads it; a model finds its own text likely")
        if self.verbatim and self.model is None:
            raise ValueError("perplexity is `verbatim` for a second `model` only; a task says it for the model itself")
        return self

    @property
    def needs(self) -> frozenset[Need]:
        if self.of == "generated":
            return frozenset({"generated"})
        return frozenset({"answer"} if self.model is None else ())

    @property
    def judges(self) -> tuple[Judge, ...]:
        return () if self.model is None else (SecondModel(model=self.model, of=self.of, verbatim=self.verbatim),)

    def score(self, row: Row) -> float | Unscored:
        if not self.judges:
            if reason := unscorable(row.answer):
                return reason
            return _perplexity(-row.answer.mean_logp())
        if self.of == "generated" and row.generated is None:
            return no_answer(row)
        verdict = row.judged[self.judges[0]]
        return Unscored(verdict) if isinstance(verdict, str) else _perplexity(-verdict)

    def average(self, values: Floats) -> Floats:
        return np.asarray(np.exp(np.log(values).mean(axis=-1)))

    def higher_is_better(self, role: Role) -> bool | None:
        if self.of == "generated":  # how fluent the answers are, whatever they are about
            return False
        knowing = super().higher_is_better(role)
        return None if knowing is None else not knowing


def _perplexity(loss: float) -> float | Unscored:
    if not loss < 700:  # not a number, or too large for one
        return Unscored(f"the mean loss is {loss:.0f} nats per token, whose exponential is not a number")
    return float(np.exp(loss))
