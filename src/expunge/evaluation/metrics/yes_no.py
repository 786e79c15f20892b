"""Yes or no: whether the generated yes or no is the right one."""

import re
from typing import ClassVar, Literal

from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, no_answer


class YesNo(Metric):
    """One where the greedy answer has exactly one of the words yes and no, and it is the response's; an answer with both or with
    neither is wrong."""

    formula: ClassVar[str] = "[{words of the answer} and {yes, no} have one word in common, which is the response's]"
    source: ClassVar[str] = "the yes/no protocol of HaluEval (Li et al. 2023, arXiv 2305.11747)"
    span: ClassVar[str] = "0 or 1 for a question; always the same word has 0.5 where both are asked for equally often"
    not_this: ClassVar[str] = "Not knowledge alone: a small model that says one word to everything, or neither, fails by form."
    good: ClassVar[Good] = "knowledge"

    name: Literal["yes_no"] = "yes_no"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"generated"})

    def score(self, row: Row) -> float | Unscored:
        if row.generated is None:
            return no_answer(row)
        wanted = row.example.response.strip().lower()
        if wanted not in ("yes", "no"):
            return Unscored("the response is neither yes nor no")
        said = {word for word in re.findall(r"\w+", row.generated.lower()) if word in ("yes", "no")}
        return float(said == {wanted})
