"""Every recipe is a whole run that can be read, and says nothing that is not a field."""

from pathlib import Path

import pytest

from expunge.recipes import recipe, recipes_folder
from expunge.spec import Run, build, to_yaml

NAMES = sorted(str(path.relative_to(recipes_folder()).with_suffix("")) for path in recipes_folder().rglob("*.yaml"))


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("skills")])
def test_a_recipe_is_a_run(name: str, tmp_path: Path) -> None:
    run = build(Run, {"model": "m", "forget": "f", **recipe(name)}, name)
    assert build(Run, recipe(name) | {"model": run.model, "forget": run.forget}, name) == run
    assert to_yaml(run)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("rmu_", "tvn_", "spunge_"))])
def test_a_published_setting_is_complete(name: str) -> None:
    said = recipe(name)
    assert {"model", "forget", "method", "training"} <= said.keys()
    run = build(Run, said, name)
    uses = run.method.each if run.method.name == "spunge" else run.method
    assert bool(run.retain) == (uses.name == "rmu")
    assert run.training.learning_rate


def test_the_published_rmu_is_that_of_the_release() -> None:
    run = build(Run, recipe("rmu_zephyr_wmdp"), "rmu_zephyr_wmdp")
    method, training = run.method, run.training
    assert method.name == "rmu"
    assert (method.alpha, method.coefficient, method.layer, method.edited) == ((1200, 1200), (6.5, 6.5), 7, (5, 6, 7))
    assert (training.steps, training.batch_size, training.learning_rate, training.adam_epsilon) == (150, 4, 5e-5, 1e-6)
