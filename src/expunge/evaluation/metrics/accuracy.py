"""Accuracy: whether the right choice is the most probable one, or the greedy answer equals the response."""

from typing import ClassVar, Literal

import numpy as np

from expunge.data.example import Example
from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, unscorable


class Accuracy(Metric):
    """One or zero. With `choices`: is the right one the most probable continuation? Without: is the greedy answer the response?

    The greedy answer is not generated. Greedy decoding writes exactly the response if and only if every token of the response,
    its end token included, is the most probable one given the true tokens before it, which one teacher-forced pass shows. If
    the response was cut or has no end token, it must be the beginning of the greedy answer.

    Choices are compared by the sum of the log-probabilities of their tokens, the end token left out and lengths not
    normalized: lm-eval's `acc`. The first of equally probable choices wins.
    """

    formula: ClassVar[str] = (
        "choices: [argmax over c of sum over t of log p(c_t | q, c<t) = answer]; "
        "else: [every token of the response is a greedy hit]"
    )
    source: ClassVar[str] = "exact match: common; choices: lm-eval `acc` (Gao et al. 2024)"
    span: ClassVar[str] = "0 or 1 for a sample; chance is 1/number of choices, or about 0 without choices"
    not_this: ClassVar[str] = (
        "Not equality of meaning: another wording or another tokenization of the same text is wrong. "
        "On choices, not free recall: a model can rank the right choice first and never say it."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["accuracy"] = "accuracy"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"answer", "choices"})

    def needs_of(self, example: Example) -> frozenset[Need]:
        return frozenset({"choices"} if example.choices else {"answer"})

    def score(self, row: Row) -> float | Unscored:
        if not row.example.choices:
            return unscorable(row.answer) or float(row.answer.hit.all())
        if row.example.answer is None:
            return Unscored("the example has choices but no index `answer`")
        texts = [choice.without_end() for choice in row.choices]
        sums = [text.logp.sum(dtype=np.float64) for text in texts]
        return unscorable(*texts) or float(int(np.argmax(sums)) == row.example.answer)
