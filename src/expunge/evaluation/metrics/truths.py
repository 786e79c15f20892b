"""What metrics on right and wrong answers have in common: log-probabilities of whole answers, and references."""

import numpy as np

from expunge.data.example import Example
from expunge.evaluation.metrics.base import Row, Unscored, unscorable
from expunge.evaluation.token_stats import TokenStats

NO_WRONG = Unscored("the example has no wrong answers (`perturbed`)")


def total(answer: TokenStats) -> float:
    """log p(answer | prompt), in nats."""
    return float(answer.logp.sum(dtype=np.float64))


def totals(row: Row) -> tuple[list[float], list[float]] | Unscored:
    """Log-probabilities of the right answers, the best one first, and of the wrong ones; their end tokens left out."""
    if not row.example.perturbed:
        return NO_WRONG
    found = [(answer.without_end(), text) for answer, text in _answers(row)]
    if reason := unscorable(*(answer for answer, _ in found)):
        return reason
    sums = [total(answer) for answer, _ in found]
    right = 1 + len(row.example.paraphrases)
    return sums[:right], sums[right:]


def _answers(row: Row) -> list[tuple[TokenStats, str]]:
    example = row.example
    right = zip((row.answer, *row.paraphrases), (example.response, *example.paraphrases), strict=True)
    return [*right, *zip(row.perturbed, example.perturbed, strict=True)]


def right_answers(example: Example) -> tuple[str, ...]:
    """References that a written answer may agree with; the evaluation of TruthfulQA counts a refusal among them."""
    return (example.response, *example.paraphrases, "I have no comment.")
