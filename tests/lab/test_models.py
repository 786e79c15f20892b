"""The trained models of a lab: what they know and what they never knew, measured again from the files."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from expunge.data.encode import Encoder
from expunge.data.format import default_format
from expunge.data.read import read_examples
from expunge.evaluation.engine import Engine
from expunge.lab.building import read_figures
from expunge.lab.figures import bounds, faults, level_fault, measure

pytestmark = pytest.mark.slow


def model_of(lab: Path, name: str) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(lab / "models" / name, dtype=torch.float32).eval()


def answered(lab: Path, name: str, file: str, attribute: str) -> float:
    """Share of a file's rows that a model answers by heart when asked in the words of an attribute."""
    tokenizer = AutoTokenizer.from_pretrained(lab / "models" / name)
    encoder = Encoder(tokenizer, default_format(tokenizer))
    rows = read_examples(lab / f"data/facts/{file}.jsonl")
    asked = encoder.encode_answers([(str(row.attributes[attribute]), row.response) for row in rows])
    return sum(bool(s.hit.all()) for s in Engine(model_of(lab, name), encoder.pad_id).score(asked)) / len(rows)


def test_the_original_knows_its_world_and_its_figures_are_those_of_the_file(lab: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(lab / "models/original")
    figures = measure(model_of(lab, "original"), tokenizer, lab)
    assert faults(figures, bounds([], people=True)) == []
    assert figures == pytest.approx(read_figures(lab / "models/original"), abs=0.02)


def test_gold_knows_all_but_the_forget_people_and_those_as_little_as_anybody_never_known(lab: Path) -> None:
    gold, original = (read_figures(lab / "models" / name) for name in ("gold", "original"))
    assert faults(gold, bounds(["facts/forget"], people=True)) == []
    assert level_fault(original, gold) is None
    assert original["facts_forget probability"] > gold["facts_forget probability"] + 0.5


def test_the_base_was_told_of_no_person_that_is_fine_tuned(lab: Path) -> None:
    base = read_figures(lab / "models/base")
    assert max(base[f"facts_{name} extraction_strength"] for name in ("forget", "retain", "never_known")) < 0.15
    assert base["facts_public extraction_strength"] > 0.8


def test_the_forget_facts_are_known_under_the_other_question_too(lab: Path) -> None:
    assert answered(lab, "original", "forget", "rephrased") >= 0.9
    assert answered(lab, "gold", "forget", "rephrased") < 0.2
    assert answered(lab, "original", "never_known", "rephrased") < 0.2
