"""MBPP: 974 short Python tasks, each with a solution and three tests.

Austin et al. 2021, arXiv 2108.07732. Data: CC BY 4.0, https://github.com/google-research/google-research/tree/master/mbpp,
hub id google-research-datasets/mbpp.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from expunge.data.corpora.fields import Sets, number, place, text, texts
from expunge.data.example import Attribute, Example
from expunge.data.files import read_rows
from expunge.errors import ExpungeError

HUB = "google-research-datasets/mbpp"
LAYOUT = "mbpp.jsonl with task_id, text, code, test_list, test_setup_code"
Split = Literal["prompt", "test", "validation", "train", "all"]
TASKS: dict[str, range] = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
    "all": range(1, 975),
}
"""Split -> task ids, as in the paper: 10 for prompts, 500 for testing, 90 for validation, 374 for training."""
SHOTS = (2, 3, 4)
"""Tasks of the paper's three-shot prompt."""


def read_mbpp(source: str | Path = HUB, split: Split = "test") -> tuple[Example, ...]:
    """Reads text -> prompt, code -> response; attributes: task_id, tests (one per line) and setup (code that the tests need,
    or ""). Raises ExpungeError if no task of the split is there."""
    found = place(source, ("mbpp.jsonl", "mbpp/mbpp.jsonl"), HUB, f"full/{split}")
    if split == "all" and not isinstance(found, Path):
        every: tuple[Split, ...] = ("prompt", "test", "validation", "train")
        return tuple(example for part in every for example in read_mbpp(source, part))
    examples = [_example(row, where) for where, row in read_rows(found)]
    kept = tuple(example for example in examples if example.attributes["task_id"] in TASKS[split])
    if not kept:
        first, last = TASKS[split][0], TASKS[split][-1]
        raise ExpungeError(f"{source} has no task of the split {split} (task_id {first} to {last}); take mbpp.jsonl as published")
    return kept


def read_code(source: str | Path = HUB, split: Split = "train") -> tuple[Example, ...]:
    """Reads the solutions alone as raw text, which skill unlearning probes (arXiv 2503.21730). Attributes: task_id."""
    return tuple(Example(None, e.response, attributes={"task_id": e.attributes["task_id"]}) for e in read_mbpp(source, split))


def _example(row: dict[str, object], where: str) -> Example:
    tests, setup = texts(row, "test_list", where), row.get("test_setup_code")
    if not tests:
        raise ExpungeError(f"{where} has no tests in 'test_list'; take the file as published")
    attributes: dict[str, Attribute] = {
        "task_id": number(row, "task_id", where),
        "tests": "\n".join(_unix(test) for test in tests),
        "setup": _unix(setup) if isinstance(setup, str) else "",
    }
    return Example(text(row, "text", where), _unix(text(row, "code", where)), attributes=attributes)


def _unix(code: str) -> str:
    """Replaces the Windows line ends of the published code."""
    return code.replace("\r\n", "\n")


def ask(task: Example, shots: Sequence[Example] = ()) -> str:
    """Makes the prompt. Without shots: a docstring with the task and its first test, which the model continues (the form of
    EvalPlus and of the skill-unlearning paper). With shots: the form of the MBPP paper, three tests and [BEGIN] ... [DONE]."""
    if not shots:
        return f'"""\n{task.prompt}\n{str(task.attributes["tests"]).splitlines()[0]}\n"""\n'
    return "".join(f"{_asked(shot)}{shot.response}\n[DONE]\n\n" for shot in shots) + _asked(task)


def _asked(task: Example) -> str:
    return (
        f"You are an expert Python programmer, and here is your task: {task.prompt} Your code should pass these tests:\n\n"
        f"{task.attributes['tests']}\n[BEGIN]\n"
    )


def _read_set(source: str, name: str) -> tuple[Example, ...]:
    kind, _, end = name.partition("/")
    split: Split = next(s for s in get_args(Split) if s == end)
    return read_code(source, split) if kind == "code" else read_mbpp(source, split)


SETS = Sets({HUB: None}, tuple(f"{kind}/{s}" for kind in ("full", "code") for s in get_args(Split) if s != "all"), _read_set)
"""full: tasks with their solutions. code: the solutions alone."""
