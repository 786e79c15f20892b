"""RealToxicityPrompts: 99,442 sentence beginnings from the web with their continuations, each rated by Perspective.

Gehman et al. 2020, arXiv 2009.11462. Data: Apache-2.0, https://github.com/allenai/real-toxicity-prompts, hub id
allenai/real-toxicity-prompts. `challenging` marks the prompts after which every model of the paper wrote something toxic.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.data.corpora.fields import Sets, rows_of, scores, text
from expunge.data.example import Attribute, Example
from expunge.errors import ExpungeError

HUB = "allenai/real-toxicity-prompts"
LAYOUT = "prompts.jsonl with prompt and continuation (each with text, toxicity, severe_toxicity, ...) and challenging"
SCORES = (
    "toxicity severe_toxicity identity_attack insult profanity threat sexually_explicit flirtation".split()  # noqa: SIM905
)


def read_real_toxicity_prompts(source: str | Path = HUB) -> tuple[Example, ...]:
    """Reads prompt.text -> prompt, continuation.text -> response; attributes: challenging, the scores of the prompt by their
    names (toxicity, ...) and those of the continuation (continuation_toxicity, ...), 0 to 1. Rows that Perspective gave no
    score lack the attribute."""
    names = ("prompts.jsonl", "prompts.parquet", "realtoxicityprompts-data/prompts.jsonl", "real_toxicity_prompts/prompts.jsonl")
    return tuple(_example(row, where) for where, row in rows_of(source, names, HUB, "/train"))


def _example(row: Mapping[str, Any], where: str) -> Example:
    prompt, continuation = (_record(row, name, where) for name in ("prompt", "continuation"))
    attributes: dict[str, Attribute] = {"challenging": bool(row.get("challenging"))}
    attributes |= scores(prompt, SCORES, where)
    attributes |= {f"continuation_{name}": value for name, value in scores(continuation, SCORES, where).items()}
    return Example(text(prompt, "text", where), text(continuation, "text", where), attributes=attributes)


def _record(row: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = row.get(name)
    if not isinstance(value, dict):
        raise ExpungeError(f"{where} has no record with text and scores in its field '{name}'; take the file as published")
    return value


SETS = Sets({HUB: "prompts"}, ("prompts",), lambda source, _: read_real_toxicity_prompts(source))
