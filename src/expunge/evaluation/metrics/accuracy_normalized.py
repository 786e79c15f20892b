"""Normalized accuracy: whether the right choice is the most probable one per character."""

from typing import ClassVar, Literal

import numpy as np

from expunge.data.example import Example
from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, unscorable


class AccuracyNormalized(Metric):
    """One or zero. Choices are compared by the sum of the log-probabilities of their tokens over their number of characters, the
    leading space and the end token left out: lm-eval's `acc_norm`. The first of equally probable choices wins."""

    formula: ClassVar[str] = "[argmax over c of (sum over t of log p(c_t | q, c<t)) / characters of c = answer]"
    source: ClassVar[str] = "lm-eval `acc_norm` (Gao et al. 2024), the usual score of ARC"
    span: ClassVar[str] = "0 or 1 for a sample; chance is about 1/number of choices"
    not_this: ClassVar[str] = "Not `accuracy`, which favors short choices; this one favors long ones. Never compare the two."
    good: ClassVar[Good] = "knowledge"

    name: Literal["accuracy_normalized"] = "accuracy_normalized"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"choices"})

    def needs_of(self, example: Example) -> frozenset[Need]:
        return self.needs if example.choices else frozenset()

    def score(self, row: Row) -> float | Unscored:
        if not row.example.choices or row.example.answer is None:
            return Unscored("the example has no choices with the index `answer`")
        texts = [choice.without_end() for choice in row.choices]
        lengths = [len(choice.removeprefix(" ")) for choice in row.example.choices]
        sums = [text.logp.sum(dtype=np.float64) / max(1, length) for text, length in zip(texts, lengths, strict=True)]
        return unscorable(*texts) or float(int(np.argmax(sums)) == row.example.answer)
