"""BLEU: share of the answer's n-grams that are in the response."""

from functools import cache
from typing import Any, ClassVar, Literal

from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, no_answer


@cache
def _bleu() -> Any:
    import sacrebleu

    return sacrebleu.BLEU(effective_order=True)


def sentence_bleu(answer: str, reference: str) -> float:
    """Computes sentence BLEU, 0 .. 1."""
    return float(_bleu().sentence_score(answer, [reference]).score) / 100


class Bleu(Metric):
    """Sentence BLEU of the greedy answer against the response, by sacrebleu."""

    formula: ClassVar[str] = (
        "min(1, exp(1 - |response| / |answer|)) (product over n of precision_n)^(1/N), N up to 4, at most the length"
    )
    source: ClassVar[str] = "Papineni et al. 2002, through sacrebleu (13a tokens, smoothing exp, effective order), over 100"
    span: ClassVar[str] = "0 (no common word) .. 1 (the same text)"
    not_this: ClassVar[str] = "Not corpus BLEU, which pools n-grams over all texts: this is the mean over sentences."
    good: ClassVar[Good] = "knowledge"

    name: Literal["bleu"] = "bleu"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"generated"})

    def score(self, row: Row) -> float | Unscored:
        if row.generated is None:
            return no_answer(row)
        return sentence_bleu(row.generated, row.expected)
