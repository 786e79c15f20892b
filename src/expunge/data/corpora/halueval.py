"""HaluEval: questions, dialogues and documents, each with a right and a hallucinated answer.

Li et al. 2023, arXiv 2305.11747. Data: MIT, https://github.com/RUCAIBox/HaluEval, hub id pminervini/HaluEval.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from expunge.data.corpora.fields import Sets, rows_of, text
from expunge.data.example import Attribute, Example
from expunge.data.files import each_row
from expunge.errors import ExpungeError

HUB = "pminervini/HaluEval"
LAYOUT = (
    "qa_data.json (knowledge, question, right_answer, hallucinated_answer), dialogue_data.json (knowledge, dialogue_history, "
    "right_response, hallucinated_response), summarization_data.json (document, right_summary, hallucinated_summary), one row a "
    "line; of the answers that qa was chosen from, qa_one-turn_data.json and qa_multi-turn_data.json"
)
Part = Literal["qa", "qa_one_turn", "qa_multi_turn", "dialogue", "summarization"]
PARTS: tuple[Part, ...] = get_args(Part)
FIELDS = {"dialogue": ("dialogue_history", "response"), "summarization": ("document", "summary")}
"""Part -> the field with the prompt, and the names of the answer fields."""
SUMMARIZE = "Summarize the following document:\n"


def read_halueval(source: str | Path = HUB, part: Part = "qa") -> tuple[Example, ...]:
    """Reads question (dialogue, document) -> prompt, the right answer -> response, the hallucinated one -> perturbed;
    attributes: knowledge, if there is any. The knowledge is not part of the prompt, as in Ext-Sub's evaluation.

    source  a folder with the published files, one of the files, or the hub id
    """
    if Path(source).is_file():
        return tuple(_example(row, part, where) for where, row in each_row(source))
    stem = part.replace("_turn", "-turn")
    names = tuple(f"{folder}{stem}_data.json" for folder in ("", "data/", "halueval/", "generation/qa/"))
    return tuple(_example(row, part, where) for where, row in rows_of(source, names, HUB, f"{part}/data"))


def read_answers(source: str | Path, part: Part, kind: Literal["right", "hallucinated"]) -> tuple[Example, ...]:
    """Reads prompts with the right answers, or with the hallucinated ones, as response: to train an expert or an anti-expert."""
    found = read_halueval(source, part)
    if kind == "right":
        return tuple(Example(e.prompt, e.response, attributes=e.attributes) for e in found)
    return tuple(Example(e.prompt, e.perturbed[0], attributes=e.attributes) for e in found)


def _example(row: Mapping[str, Any], part: Part, where: str) -> Example:
    asked, answer = FIELDS.get(part, ("question", "answer"))
    prompt = text(row, asked, where).strip()
    right, made_up = (text(row, f"{kind}_{answer}", where).strip() for kind in ("right", "hallucinated"))
    knowledge = row.get("knowledge")
    attributes: dict[str, Attribute] = {"knowledge": knowledge} if isinstance(knowledge, str) and knowledge.strip() else {}
    return Example(SUMMARIZE + prompt if part == "summarization" else prompt, right, perturbed=(made_up,), attributes=attributes)


def _read_set(source: str, name: str) -> tuple[Example, ...]:
    _, part_name, *kind = name.split("/")
    part = next((p for p in PARTS if p == part_name), None)
    if part is None:
        raise ExpungeError(f"HaluEval has no part '{part_name}'; it has {', '.join(PARTS)}")
    if not kind:
        return read_halueval(source, part)
    return read_answers(source, part, "right" if kind[0] == "right" else "hallucinated")


SETS = Sets({HUB: None}, tuple(f"halueval/{p}{end}" for p in PARTS for end in ("", "/right", "/hallucinated")), _read_set)
