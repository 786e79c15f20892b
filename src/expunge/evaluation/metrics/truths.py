"""Base classes of metrics that compare right and wrong answers."""

import numpy as np

from expunge.data.example import Example
from expunge.evaluation.metrics.base import Metric, Need, Row, Unscored, no_answer, unscorable
from expunge.evaluation.token_stats import TokenStats

NO_WRONG = Unscored("the example has no wrong answers (`perturbed`)")


def total(answer: TokenStats) -> float:
    """Computes log p(answer | prompt), in nats."""
    return float(answer.logp.sum(dtype=np.float64))


class BestAgainstWrong(Metric):
    """Base class of metrics that are one if the best right answer has a higher value than each wrong one, else zero."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"answer", "perturbed"})

    def read(self, answer: TokenStats) -> TokenStats:
        """Returns the part of an answer that counts."""
        return answer

    def value(self, answer: TokenStats) -> float:
        """Returns the value by which answers are compared: log p(answer | prompt), in nats."""
        return total(answer)

    def score(self, row: Row) -> float | Unscored:
        if not row.example.perturbed:
            return NO_WRONG
        answers = [self.read(answer) for answer in (row.answer, *row.perturbed)]
        if reason := unscorable(*answers):
            return reason
        best, *wrong = map(self.value, answers)
        return float(best > max(wrong))


class RightAgainstWrong(Metric):
    """Base class of metrics that compare the log-probabilities, in nats, of right and wrong answers without their end tokens."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"answer", "paraphrases", "perturbed"})

    def compare(self, right: list[float], wrong: list[float]) -> float:
        """Computes the value of one question.

        right  log-probabilities of the right answers, the best answer first
        wrong  those of the wrong answers
        """
        raise TypeError(f"{type(self).__name__} compares nothing")

    def score(self, row: Row) -> float | Unscored:
        example = row.example
        if not example.perturbed:
            return NO_WRONG
        right_texts = (example.response, *example.paraphrases)
        right = [answer.without_end() for answer, _ in zip((row.answer, *row.paraphrases), right_texts, strict=True)]
        wrong = [answer.without_end() for answer, _ in zip(row.perturbed, example.perturbed, strict=True)]
        return unscorable(*right, *wrong) or self.compare([total(a) for a in right], [total(a) for a in wrong])


class DifferenceMetric(Metric):
    """Base class: the largest similarity of the greedy answer to a right answer, minus the largest to a wrong one."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"generated"})

    def likeness(self, text: str, generated: str) -> float:
        """Computes the similarity of a reference and the generated answer, 0 to 1."""
        raise TypeError(f"{type(self).__name__} compares nothing")

    def score(self, row: Row) -> float | Unscored:
        if row.generated is None:
            return no_answer(row)
        if not row.example.perturbed:
            return NO_WRONG
        generated = row.generated
        right, wrong = (
            max(self.likeness(text, generated) for text in texts) for texts in (right_answers(row.example), row.example.perturbed)
        )
        return right - wrong


def right_answers(example: Example) -> tuple[str, ...]:
    """Returns the references of a right answer; as in TruthfulQA's evaluation, a refusal is one of them."""
    return (example.response, *example.paraphrases, "I have no comment.")
