"""The verdict on models that must pass: gold models of the same data, retrained with another seed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from expunge.evaluation.run import evaluate
from expunge.evaluation.suites.lab import Lab
from expunge.evaluation.task import Suite
from expunge.evaluation.verdict import verdict
from expunge.lab.building import cache_folder
from expunge.lab.models import Maker
from expunge.lab.size import SIZES
from expunge.lab.world import generate
from expunge.loading import load
from expunge.records import Sample, read_samples

pytestmark = pytest.mark.slow
SEED = 1


@pytest.fixture(scope="module")
def second(lab: Path) -> Path:
    """gold of another seed: the base, fine-tuned without the forget people in another order. Made once, then kept."""
    kept = cache_folder().parent / "second_gold" / json.loads((lab / "world.json").read_text())["fingerprint"]
    if not kept.is_dir():
        rounds = json.loads((lab / "models/original/figures.json").read_text())["rounds"]
        base = LlamaForCausalLM.from_pretrained(lab / "models/base", dtype=torch.float32)
        maker = Maker(lab, generate(0, SIZES["tiny"]), SEED, "tiny", True)
        made = maker.tuned(base, "facts/forget", rounds)
        beside = kept.with_name(f".{kept.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        maker.save(made, beside)
        beside.rename(kept)
    return kept


def forgotten(lab: Path, model: Path, out: Path) -> list[Sample]:
    """Samples of what was to be forgotten."""
    tasks = tuple(task for task in Lab().build(lab).tasks if task.role == "forget")
    loaded, tokenizer = load(model)
    evaluate(loaded, tokenizer, suite=Suite("lab", tasks, lambda _: []), out=out, quiet=True)
    return list(read_samples(out / "lab.samples.jsonl"))


def test_two_gold_models_pass_and_the_original_does_not(lab: Path, second: Path, tmp_path: Path) -> None:
    models = {"gold": lab / "models/gold", "second": second, "original": lab / "models/original"}
    samples = {name: forgotten(lab, folder, tmp_path / name) for name, folder in models.items()}
    for one, other in (("gold", "second"), ("second", "gold")):
        found = verdict(samples[one], samples[other])
        assert found.words == "indistinguishable from gold", found.apart or found.undecided
        metrics = {finding.metric for finding in found.findings}
        assert {"probability", "extraction_strength", "truth_ratio", "reciprocal_rank", "mia_min_k", "accuracy"} <= metrics
    assert verdict(samples["original"], samples["gold"]).words == "still known"
