"""Every training method has settings for the lab, and with them forgets there and keeps the rest.

The six of the quickstart are tested with it, on everything in the lab; here are the others, on the people alone.
"""

from pathlib import Path

import pytest
import torch

from expunge import quickstart
from expunge.data.encode import Encoder
from expunge.data.format import default_format
from expunge.data.read import read_examples
from expunge.loading import load
from expunge.methods import METHODS, TrainingMethod
from expunge.models.answer_levels import mean_answer_probability
from expunge.recipes import recipes_folder
from expunge.run import execute

PEOPLE = [name for name, cls in METHODS.items() if issubclass(cls, TrainingMethod) and name != "rmu"]
"""RMU has texts to forget, not people: its recipes are tested with the hazard domains."""

SHORTER = {"whp": 250}
"""Steps of a recipe that goes on until its result cannot be told from gold (docs/gold.md): these bounds are reached before."""

LEAST_KEPT = {"scrub": 0.8}
"""SCRUB stops in the middle of a swing: 0.88 to 0.92 in the labs of benchmarks/outcomes.py."""


def test_every_method_that_forgets_answers_has_settings_for_the_lab() -> None:
    assert [name for name in PEOPLE if not (recipes_folder() / f"lab/{name}.yaml").is_file()] == []


def probabilities(source: Path, lab: Path) -> tuple[float, float]:
    """Mean token probability of the forget and of the retain answers."""
    model, tokenizer = load(source)
    encoder = Encoder(tokenizer, default_format(tokenizer))
    facts = [read_examples(lab / f"data/facts/{name}.jsonl") for name in ("forget", "retain")]
    rows = [[encoder.encode(example) for example in examples] for examples in facts]
    forget, retain = (mean_answer_probability(model, part, encoder.pad_id, torch.device("cpu")) for part in rows)
    return forget, retain


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PEOPLE if name not in quickstart.METHODS])
def test_the_methods_beside_the_quickstart_land_as_if_never_learned(name: str, lab: Path, tmp_path: Path) -> None:
    run = quickstart.lab_run(name, lab, 0)
    steps = SHORTER.get(name, run.training.steps)
    execute(run.model_copy(update={"training": run.training.model_copy(update={"steps": steps})}), tmp_path / "run", quiet=True)
    (original, kept), (gold, _) = (probabilities(lab / "models" / model, lab) for model in ("original", "gold"))
    forget, retain = probabilities(tmp_path / "run", lab)
    assert 0.8 <= (original - forget) / (original - gold) <= 1.2
    assert retain / kept >= LEAST_KEPT.get(name, 0.9)
