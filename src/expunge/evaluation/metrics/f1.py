"""F1: overlap of the words of the right phrase and the greedy answer."""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, no_answer
from expunge.evaluation.metrics.normalization import ARTICLES, words


def f1(answer: Sequence[str], right: Sequence[str]) -> float:
    """Computes the harmonic mean of precision and recall over two bags of words; 0 if they share none (also if both are
    empty)."""
    same = sum((Counter(answer) & Counter(right)).values())
    return 2 * same / (len(answer) + len(right)) if same else 0.0


class F1(Metric):
    """F1 of the greedy answer's normalized words against the best of the right answers."""

    formula: ClassVar[str] = (
        "max over right answers of 2 |words(generated) and words(right)| / (|words(generated)| + |words(right)|)"
    )
    source: ClassVar[str] = (
        "SQuAD's F1 in MLQA's official script (Lewis et al. 2020, arXiv 1910.07475): articles by language, Chinese by character"
    )
    span: ClassVar[str] = "0 (no common word) .. 1 (the same words, in any order)"
    not_this: ClassVar[str] = (
        "Not comparable between languages: in Chinese a word is a character, elsewhere what stands between blanks."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["f1"] = "f1"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"generated"})

    def score(self, row: Row) -> float | Unscored:
        if row.generated is None:
            return no_answer(row)
        language = str(row.example.attributes.get("language", "en"))
        if language not in ARTICLES:
            return Unscored(f"there is no official normalization for the language {language}")
        answer = words(row.generated, language)
        return max(f1(answer, words(right, language)) for right in (row.example.response, *row.example.paraphrases))
