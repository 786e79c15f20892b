"""pass@1: whether the program that the model writes passes the tests."""

import ast
import re
from typing import ClassVar, Literal

from expunge.data.example import Example
from expunge.evaluation.metrics.base import Good, Metric, Need, Row, Unscored, no_answer
from expunge.evaluation.sandbox import run_code

_FENCE = re.compile(r"```(?:[\w+-]*\n)?(.*?)(?:```|\Z)", re.DOTALL)


def program(before: str, text: str) -> str:
    """Returns the program to run: `before` and the first fenced block, or else the text; if that is not valid Python, its
    longest valid beginning (in lines)."""
    fenced = _FENCE.search(text)
    lines = (before + (fenced[1] if fenced else text)).splitlines()
    for count in range(len(lines), 0, -1):
        if _parses(code := "\n".join(lines[:count])):
            return code
    return before + text


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


class PassAt1(Metric):
    """One if the greedy program, screened and run in the sandbox with the tests, runs to their end.

    The attribute `tests` holds the tests, `before` the text before the answer in the program (HumanEval: the prompt).
    """

    formula: ClassVar[str] = "[before + generated + tests runs to its end within the limits of the sandbox]"
    source: ClassVar[str] = (
        "pass@1 with one greedy sample: Chen et al. 2021 (arXiv 2107.03374), Austin et al. 2021 (arXiv 2108.07732)"
    )
    span: ClassVar[str] = "0 or 1 for a sample"
    not_this: ClassVar[str] = (
        "Not correctness beyond the tests. Not the expected value under sampling. Programs that need packages outside the "
        "standard library, or more than 5 CPU seconds, fail."
    )
    good: ClassVar[Good] = "knowledge"

    name: Literal["pass_at_1"] = "pass_at_1"
    allow_code_execution: bool = False
    """Run the code that the model writes, in the sandbox. Off by default; without it nothing is generated either."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"generated"}) if self.allow_code_execution else frozenset()

    def needs_of(self, example: Example) -> frozenset[Need]:
        return self.needs

    def score(self, row: Row) -> float | Unscored:
        if not self.allow_code_execution:
            return Unscored("it runs code that the model wrote; allow that with --allow-code-execution")
        if row.generated is None:
            return no_answer(row)
        if "tests" not in row.example.attributes:
            return Unscored("the example has no attribute `tests`")
        code = program(str(row.example.attributes.get("before", "")), row.generated)
        return float(run_code(code, str(row.example.attributes["tests"])).passed)
