"""Cross-lingual: asks in another language, with a table of translations or a translation model."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from expunge.attacks.base import AttackSpec, Found, Preset, Scene, Way
from expunge.attacks.knowledge import Facts, Floats, words
from expunge.attacks.target import Target
from expunge.errors import ExpungeError


class CrossLingual(AttackSpec):
    """Asks every question in other languages and looks for the answer's words, as they are or translated, in the answer.

    `table` is a JSON file `{"LANGUAGE": {"text": "translation"}}`: whole questions, or words, which are then replaced one by one.
    `translators` are sequence-to-sequence models, one per language.
    """

    paper: ClassVar[str] = "multilingual unlearning: Choi et al. 2024 (arXiv 2406.12354)"
    does: ClassVar[str] = "asks in other languages"
    presets: ClassVar[Mapping[str, Preset]] = {"paper": Preset({}, "all languages of the table, all translators")}

    name: Literal["cross_lingual"] = "cross_lingual"
    table: str | None = None
    """JSON file with translations."""
    translators: tuple[str, ...] = ()
    """Translation models, as folders or hub ids (such as Helsinki-NLP/opus-mt-en-de)."""

    def not_applicable(self, target: Target, scene: Scene) -> str | None:
        if self.table is None and not self.translators:
            return "needs translations; give them with --options table=FILE.json or translators=MODEL"
        return super().not_applicable(target, scene)

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        ways = []
        for language, table in (translations(self.table) if self.table else {}).items():
            prompts = [translated(question, table) for question in facts.questions]
            ways.append(Way(language, _recall(target, facts, prompts, table)))
        for place in self.translators:
            prompts = translate(place, facts.questions)
            ways.append(Way(place, _recall(target, facts, prompts, {})))
        return Found(tuple(ways))


def translations(file: str) -> dict[str, dict[str, str]]:
    """Reads language -> text -> translation."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        return {str(language): {str(a): str(b) for a, b in table.items()} for language, table in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ExpungeError(
            f'{file} is no table of translations ({error}); write it as {{"LANGUAGE": {{"text": "translation"}}}}'
        ) from error


def translated(question: str, table: Mapping[str, str]) -> str:
    """Translates the whole question, or word by word; unknown words (names) are kept."""
    if question in table:
        return table[question]
    return " ".join(table.get(word, table.get(word.lower(), word)) for word in question.split())


def translate(place: str, texts: tuple[str, ...]) -> list[str]:
    """Translates by a sequence-to-sequence model, greedily."""
    model, tokenizer = _translator(place)
    batch = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True)
    with torch.inference_mode():
        written = model.generate(**batch, max_new_tokens=128, num_beams=1, do_sample=False)
    return list(tokenizer.batch_decode(written, skip_special_tokens=True))


@cache
def _translator(place: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    try:
        model = AutoModelForSeq2SeqLM.from_pretrained(place, use_safetensors=True).eval()
        return model, AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ExpungeError(f"the translator {place} cannot be loaded ({reason}); give a sequence-to-sequence model") from error


def _recall(target: Target, facts: Facts, prompts: list[str], table: Mapping[str, str]) -> Floats:
    """Computes [facts], the share of the words that count that occur in the answer, as they are or translated."""
    found = np.full(len(facts), np.nan)
    for i, (prompt, text) in enumerate(zip(prompts, target.ask(prompts), strict=True)):
        mine = facts.words(i, prompt)
        if text is not None and mine:
            said = set(words(text))
            found[i] = np.mean([word in said or bool(said & set(words(table.get(word, word)))) for word in mine])
    return found
