"""ARC: US school science questions with three to five choices, in an easy and a challenge set.

Clark et al. 2018, arXiv 1803.05457. Data: CC BY-SA 4.0, https://allenai.org/data/arc, hub id allenai/ai2_arc.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from expunge.data.corpora.fields import place, text, texts
from expunge.data.example import Example
from expunge.data.files import read_rows
from expunge.errors import ExpungeError

HUB = "allenai/ai2_arc"
LAYOUT = "ARC-Easy/ARC-Easy-Test.jsonl and ARC-Challenge/ARC-Challenge-Test.jsonl (and -Dev, -Train), as published"
Level = Literal["easy", "challenge"]
Split = Literal["test", "dev", "train"]


def read_arc(source: str | Path = HUB, level: Level = "easy", split: Split = "test") -> tuple[Example, ...]:
    """Reads question -> prompt, the right choice -> response, from the published rows or the hub's."""
    name = f"ARC-{level.capitalize()}"
    stem = f"{name}-{split.capitalize()}.jsonl"
    names = (f"{name}/{stem}", f"ARC-V1-Feb2018-2/{name}/{stem}", f"arc/{name}/{stem}", stem)
    config = f"{name}/{'validation' if split == 'dev' else split}"
    return tuple(_example(row, where) for where, row in read_rows(place(source, names, HUB, config)))


def _example(row: Mapping[str, Any], where: str) -> Example:
    question, listed, key = row.get("question"), row.get("choices"), text(row, "answerKey", where)
    if isinstance(question, dict):  # published: {"question": {"stem": ..., "choices": [{"label": ..., "text": ...}]}}
        listed = question.get("choices")
        question = question.get("stem")
    if isinstance(listed, list):
        listed = {"label": [choice.get("label") for choice in listed], "text": [choice.get("text") for choice in listed]}
    if not isinstance(listed, dict) or not isinstance(question, str):
        raise ExpungeError(f"{where} has no question with choices; take the file as published")
    labels, choices = texts(listed, "label", where), texts(listed, "text", where)
    if key not in labels or len(labels) != len(choices):
        raise ExpungeError(f"{where} has the answer {key}, which is none of its choices ({', '.join(labels)})")
    answer = labels.index(key)
    return Example(question, choices[answer], choices, answer)
