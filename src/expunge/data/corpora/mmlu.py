"""MMLU: 14,042 four-choice questions on 57 school, college and professional subjects, with five examples for each subject.

Hendrycks et al. 2021, arXiv 2009.03300. Data: MIT, https://github.com/hendrycks/test, hub id cais/mmlu.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from expunge.data.corpora.fields import number, place, text, texts
from expunge.data.example import Example
from expunge.data.files import read_rows
from expunge.data.questions import lettered
from expunge.errors import ExpungeError, nearest

HUB = "cais/mmlu"
LAYOUT = (
    "test/SUBJECT_test.csv and dev/SUBJECT_dev.csv: question, four choices, answer (A to D or 0 to 3), with or without a first "
    "line of names"
)
Split = Literal["test", "dev", "val"]

_CATEGORIES = {
    "stem": (
        "abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science college_mathematics "
        "college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics high_school_biology "
        "high_school_chemistry high_school_computer_science high_school_mathematics high_school_physics high_school_statistics "
        "machine_learning"
    ),
    "humanities": (
        "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law "
        "jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law world_religions"
    ),
    "social_sciences": (
        "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
        "high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations "
        "security_studies sociology us_foreign_policy"
    ),
    "other": (
        "business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing medical_genetics "
        "miscellaneous nutrition professional_accounting professional_medicine virology"
    ),
}
CATEGORIES: dict[str, tuple[str, ...]] = {name: tuple(subjects.split()) for name, subjects in _CATEGORIES.items()}
SUBJECTS: tuple[str, ...] = tuple(sorted(subject for subjects in CATEGORIES.values() for subject in subjects))
SUBSETS: dict[str, tuple[str, ...]] = {
    "economics": ("high_school_macroeconomics", "high_school_microeconomics"),
    "econometrics": ("econometrics",),
    "law": ("international_law", "professional_law"),
    "jurisprudence": ("jurisprudence",),
    "physics": ("college_physics", "conceptual_physics", "high_school_physics"),
    "math": ("college_mathematics", "high_school_mathematics"),
}
"""Groups of subjects to forget, each with a neighbouring one to keep: economics and econometrics, law and jurisprudence,
physics and math (RMU, arXiv 2403.03218, and ECO, arXiv 2406.07933)."""


def read_mmlu(source: str | Path, subject: str, split: Split = "test") -> tuple[Example, ...]:
    """Reads question -> prompt, the right choice -> response; attributes: subject. Raises ExpungeError for an unknown
    subject, and for rows that are not four-choice questions."""
    if subject not in SUBJECTS:
        raise ExpungeError(f"MMLU has no subject '{subject}'{nearest(subject, SUBJECTS)}; its 57 are listed in {__name__}")
    file = f"{subject}_{split}.csv"
    names = (f"{split}/{file}", f"data/{split}/{file}", f"mmlu/{split}/{file}", file)
    found = place(source, names, HUB, f"{subject}/{_hub_split(split)}")
    if isinstance(found, Path):
        return tuple(_from_cells(cells, f"{found} row {row}", subject) for row, cells in enumerate(_cells(found), start=1))
    rows = read_rows(found)
    return tuple(_example(text(r, "question", w), texts(r, "choices", w), number(r, "answer", w), subject, w) for w, r in rows)


def ask(question: Example, shots: Sequence[Example] = ()) -> Example:
    """Makes the prompt: the first line names the subject (the form of the paper and of lm-eval)."""
    subject = str(question.attributes["subject"]).replace("_", " ")
    return lettered(question, f"The following are multiple choice questions (with answers) about {subject}.", shots)


def _hub_split(split: Split) -> str:
    return "validation" if split == "val" else split


def _cells(file: Path) -> list[list[str]]:
    """Yields the rows without the header line, if there is one."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExpungeError(f"{file} is not CSV in UTF-8 ({error}); take it as published") from error
    rows = rows[1:] if rows and rows[0][-1].strip().lower() == "answer" else rows
    if not rows:
        raise ExpungeError(f"{file} holds no questions; take it as published")
    return rows


def _from_cells(cells: list[str], where: str, subject: str) -> Example:
    key = cells[-1].strip() if cells else ""
    if len(cells) != 6 or len(key) != 1 or key not in "ABCD0123":
        raise ExpungeError(
            f"{where} is not a question, four choices and an answer (A to D or 0 to 3); take the file as published"
        )
    return _example(cells[0], tuple(cells[1:5]), "ABCD".find(key) if key in "ABCD" else int(key), subject, where)


def _example(question: str, choices: tuple[str, ...], answer: int, subject: str, where: str) -> Example:
    if len(choices) != 4 or not 0 <= answer < 4 or not question.strip():
        raise ExpungeError(f"{where} is not a question with four choices and the index of the right one; take it as published")
    return Example(question, choices[answer], choices, answer, attributes={"subject": subject})
