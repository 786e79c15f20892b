"""HumanEval: 164 Python functions to be completed from signature and docstring, with hidden tests.

Chen et al. 2021, arXiv 2107.03374. Data: MIT, https://github.com/openai/human-eval, hub id openai/openai_humaneval.
"""

from pathlib import Path

from expunge.data.corpora.fields import place, text
from expunge.data.example import Example
from expunge.data.files import read_rows

HUB = "openai/openai_humaneval"
LAYOUT = "HumanEval.jsonl.gz (or HumanEval.jsonl) with task_id, prompt, canonical_solution, test, entry_point"


def read_humaneval(source: str | Path = HUB) -> tuple[Example, ...]:
    """Reads prompt -> prompt, canonical_solution -> response (the body, indented); attributes: task_id, entry_point, and
    tests, which call `check` on the function."""
    rows = read_rows(place(source, ("HumanEval.jsonl.gz", "HumanEval.jsonl"), HUB, "openai_humaneval/test"))
    return tuple(_example(row, where) for where, row in rows)


def _example(row: dict[str, object], where: str) -> Example:
    entry = text(row, "entry_point", where)
    attributes = {
        "task_id": text(row, "task_id", where),
        "entry_point": entry,
        "tests": f"{text(row, 'test', where)}\ncheck({entry})",
    }
    return Example(text(row, "prompt", where), text(row, "canonical_solution", where), attributes=attributes)
