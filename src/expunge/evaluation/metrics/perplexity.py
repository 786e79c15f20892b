"""Perplexity: how surprised is a model by a text?"""

from typing import ClassVar, Literal

import numpy as np

from expunge.evaluation.metrics.base import Floats, Good, Metric, Role, Row, Unscored, unscorable


class Perplexity(Metric):
    """exp of the mean loss per token of the response (of the whole text, for raw text), its end token included.

    Padding counts nowhere: a text has the same perplexity alone and beside a longer one. A task reports the geometric mean over
    texts, exp(mean of their mean losses); with texts of like length that is the perplexity of the corpus.
    """

    formula: ClassVar[str] = "exp(-(1/n) sum over t of log p(x_t | x<t)); over a task exp(mean over texts of its logarithm)"
    source: ClassVar[str] = "Jelinek et al. 1977; the released code of ECO divides by the padded length instead"
    span: ClassVar[str] = "1 (every token foreseen) .. infinity; the size of the vocabulary = guessing"
    not_this: ClassVar[str] = (
        "Not comparable between tokenizers: it is per token. Not quality: fluent nonsense and endless repetition have a low one."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["perplexity"] = "perplexity"

    def score(self, row: Row) -> float | Unscored:
        if reason := unscorable(row.answer):
            return reason
        loss = -row.answer.mean_logp()
        return float(np.exp(loss)) if loss < 700 else Unscored(f"its logarithm is {loss:.0f}: too large for a number")

    def average(self, values: Floats) -> Floats:
        return np.asarray(np.exp(np.log(values).mean(axis=-1)))

    def higher_is_better(self, role: Role) -> bool | None:
        knowing = super().higher_is_better(role)
        return None if knowing is None else not knowing
