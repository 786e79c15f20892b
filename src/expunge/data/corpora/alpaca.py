"""Alpaca: instructions, some with an input, and answers. Many data sets have the same layout.

Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca, CC BY-NC 4.0, hub id tatsu-lab/alpaca; with answers of GPT-4:
Peng et al. 2023, arXiv 2304.03277, hub id vicgalle/alpaca-gpt4.

Ext-Sub (arXiv 2308.08090) trains its expert on alpaca-gpt4 and its anti-expert on the same instructions with untruthful answers.
Its text is not the template of Alpaca but blocks of `<|user|>` and `<|assistant|>` (recipes/behavior/), input after a space.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.data.corpora.fields import Sets, rows_of, text
from expunge.data.example import Example
from expunge.data.files import each_row

HUBS = ("tatsu-lab/alpaca", "vicgalle/alpaca-gpt4")
LAYOUT = "a JSON list (or JSONL) of instruction, input (may be empty or missing), output"
FILES = ("alpaca_data.json", "alpaca_gpt4_data.json", "alpaca_data_cleaned.json", "alpaca.json", "alpaca.jsonl")


def read_alpaca(source: str | Path = HUBS[0]) -> tuple[Example, ...]:
    """Reads instruction (with the input after a space, if there is one) -> prompt, output -> response. Other columns are
    ignored.

    source  a JSON file, a folder that holds one of the published names, or a hub id
    """
    if Path(source).is_file():
        return tuple(_example(row, where) for where, row in each_row(source))
    hub = source if isinstance(source, str) and source in HUBS else HUBS[0]
    return tuple(_example(row, where) for where, row in rows_of(source, FILES, hub, "default/train"))


def _example(row: Mapping[str, Any], where: str) -> Example:
    instruction, given = text(row, "instruction", where), row.get("input")
    prompt = f"{instruction} {given}" if isinstance(given, str) and given.strip() else instruction
    return Example(prompt, text(row, "output", where))


SETS = Sets(dict.fromkeys(HUBS, "alpaca"), ("alpaca",), lambda source, _: read_alpaca(source))
