"""What the training-free methods do to a skill of the lab, by their recipes: measured and not only run."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.data.format import default_format
from expunge.data.read import read_examples
from expunge.evaluation.metrics import Accuracy
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites.lab import Lab
from expunge.loading import load
from expunge.methods import method_class
from expunge.methods.base import GuardingMethod, InPlaceEditing
from expunge.recipes import recipe

pytestmark = pytest.mark.slow

PATHS = {"arithmetic": "skills/arithmetic", "strings": "skills/strings"} | {
    f"language_{name}": f"languages/{name}" for name in ("orvish", "orvane", "tullic", "peskan")
}
TESTED = (*PATHS, "facts_retain", "general")
Drops = Mapping[str, float]


@pytest.fixture(scope="module")
def drops(lab: Path) -> Callable[[str, str], Drops]:
    """(method, what to forget) -> share of the original's accuracy that is gone, by task."""
    model, tokenizer = load(lab / "models/original")
    encoder = Encoder(tokenizer, default_format(tokenizer))
    before = accuracies(model, lab)

    def measure(name: str, forgotten: str) -> Drops:
        method = method_class(name).model_validate(recipe(f"lab/{name}")["method"])
        path = PATHS[forgotten]
        request = Request(read_examples(lab / f"data/{path}/train.jsonl"), read_examples(lab / f"data/keep/{path}.jsonl"))
        if isinstance(method, GuardingMethod):
            with method.attach(model, method.fit(model, request, encoder), encoder):
                after = accuracies(model, lab)
        else:
            assert isinstance(method, InPlaceEditing)
            edited, _ = load(lab / "models/original")
            method.apply(edited, request, encoder)
            after = accuracies(edited, lab)
        return {task: 1 - after[task] / before[task] for task in TESTED}

    return measure


def accuracies(model: PreTrainedModel, lab: Path) -> dict[str, float]:
    suite = Lab().build(lab)
    tasks = [replace(t, metrics=tuple(m for m in t.metrics if isinstance(m, Accuracy))) for t in suite.tasks if t.name in TESTED]
    _, tokenizer = load(lab / "models/original")
    found = evaluate(model, tokenizer, suite=replace(suite, tasks=tuple(tasks), summarize=lambda _: []), quiet=True)
    return {score.task: score.value or 0.0 for score in found.scores}


@pytest.mark.parametrize("skill", ["arithmetic", "strings"])
def test_key_space_detection_forgets_a_skill_and_keeps_all_others(skill: str, drops: Callable[[str, str], Drops]) -> None:
    found = drops("key_space", skill)
    assert found[skill] >= 0.95
    assert max(drop for task, drop in found.items() if task != skill) <= 0.02


def test_key_space_detection_forgets_a_language_at_the_cost_of_its_relatives(drops: Callable[[str, str], Drops]) -> None:
    found = drops("key_space", "language_orvish")
    assert found["language_orvish"] >= 0.7  # five labs (benchmarks/outcomes.py): 0.82 to 0.94
    assert max(found[task] for task in TESTED if not task.startswith("language")) <= 0.02
    assert found["language_orvish"] > 0.2 + max(found[f"language_{name}"] for name in ("orvane", "tullic", "peskan"))


@pytest.mark.parametrize(
    # Five labs (benchmarks/outcomes.py): Neuron Adjust 0.35 to 0.79, Selective Pruning 0.51 to 0.95, 3.6 and 6 times the
    # largest other loss and more.
    ("method", "skill", "least"),
    [("neuron_adjust", "arithmetic", 0.25), ("selective_pruning", "arithmetic", 0.4)],
)
def test_the_neurons_of_a_skill_are_found(method: str, skill: str, least: float, drops: Callable[[str, str], Drops]) -> None:
    """Weaker, and less of it on the skill alone, than a box; but the neurons that they choose are the skill's."""
    found = drops(method, skill)
    assert found[skill] >= least
    assert found[skill] > 2 * max(drop for task, drop in found.items() if task != skill)
