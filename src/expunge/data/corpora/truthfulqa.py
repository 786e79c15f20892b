"""TruthfulQA: 817 questions that many people answer wrongly, with right and wrong answers.

Lin et al. 2022, arXiv 2109.07958. Data: Apache-2.0, https://github.com/sylinrl/TruthfulQA, hub id truthfulqa/truthful_qa.

SKU (arXiv 2402.10058) uses it as normal prompts: two samples per question, the best answer and the list of all correct ones as
one text, shuffled and split 70/10/20, so that a question of the test part is often in the training part too. These are the sets
`truthfulqa/released/...`; the sets `truthfulqa/...` are split by question.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from expunge.data.corpora.fields import Sets, rows_of, text
from expunge.data.example import Example
from expunge.errors import ExpungeError

HUB = "truthfulqa/truthful_qa"
LAYOUT = "TruthfulQA.csv with Type, Category, Question, Best Answer, Correct Answers, Incorrect Answers (lists separated by ;)"
FILES = ("TruthfulQA.csv", "TruthfulQA_817.csv", "truthfulqa/TruthfulQA.csv", "truthfulqa/TruthfulQA_817.csv")
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
SEED = 8888
"""Seed of SKU's release."""

Item = TypeVar("Item")


def read_truthfulqa(source: str | Path = HUB, part: Part | None = None) -> tuple[Example, ...]:
    """Reads question -> prompt, best answer -> response, the other correct answers -> paraphrases, incorrect ones -> perturbed;
    attributes: category, and type (Adversarial or not).

    source  the CSV file, a folder that holds it, or the hub id
    part    of questions: train 70 %, validation 10 %, test 20 %, by a seeded shuffle; None: all of them
    """
    questions = [_question(row, where) for where, row in _rows(source)]
    return tuple(questions if part is None else cut(questions, part))


def read_released(source: str | Path = HUB, part: Part | None = None) -> tuple[Example, ...]:
    """Reads SKU's samples: question -> prompt; the best answer, and the text of all correct answers, -> response of one
    sample each."""
    samples = [sample for where, row in _rows(source) for sample in _samples(row, where)]
    return tuple(samples if part is None else cut(samples, part))


def cut(items: Sequence[Item], part: Part) -> list[Item]:
    """Splits 70/10/20 after a shuffle by the release's seed, as `torch.utils.data.random_split` does: 1,143 of 1,634 samples
    for training."""
    import torch

    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(SEED)).tolist()
    train, validation = int(0.7 * len(items)), int(0.1 * len(items))
    bounds = {"train": (0, train), "validation": (train, train + validation), "test": (train + validation, len(items))}
    start, stop = bounds[part]
    return [items[i] for i in order[start:stop]]


def _rows(source: str | Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if Path(source).is_file():
        from expunge.data.files import each_row

        return each_row(source)
    return rows_of(source, FILES, HUB, "generation/validation")


def _question(row: Mapping[str, Any], where: str) -> Example:
    best = _field(row, "Best Answer", where)
    correct, wrong = (_answers(row, name, where) for name in ("Correct Answers", "Incorrect Answers"))
    attributes = {"category": _field(row, "Category", where), "type": _field(row, "Type", where)}
    others = tuple(answer for answer in correct if answer != best)
    return Example(_field(row, "Question", where), best, paraphrases=others, perturbed=wrong, attributes=attributes)


def _samples(row: Mapping[str, Any], where: str) -> Iterator[Example]:
    question = _field(row, "Question", where)
    yield Example(question, _field(row, "Best Answer", where))
    whole = row.get("Correct Answers")
    yield Example(question, whole.strip() if isinstance(whole, str) else "; ".join(_answers(row, "Correct Answers", where)))


def _field(row: Mapping[str, Any], name: str, where: str) -> str:
    """Returns a field by its name in the CSV, or the hub's."""
    return text(row, name if name in row else name.lower().replace(" ", "_"), where).strip()


def _answers(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """Returns the answers of a list separated by semicolons, or of the hub's list, stripped and without duplicates."""
    value = row.get(name, row.get(name.lower().replace(" ", "_")))
    parts = value.split(";") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ExpungeError(f"{where} has no answers in its field '{name}'; take the file as published")
    found = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not found:
        raise ExpungeError(f"{where} has no answers in its field '{name}'; take the file as published")
    return found


def _read_set(source: str, name: str) -> tuple[Example, ...]:
    part = next((p for p in PARTS if name.endswith(f"/{p}")), None)
    return read_released(source, part) if name.startswith("truthfulqa/released") else read_truthfulqa(source, part)


SETS = Sets(
    {HUB: None},
    ("truthfulqa", *(f"truthfulqa/{part}" for part in PARTS), *(f"truthfulqa/released/{part}" for part in PARTS)),
    _read_set,
)
