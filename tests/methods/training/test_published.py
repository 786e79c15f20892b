"""Recipes of published settings hold the published values, and say nothing that the method's own defaults do not bear."""

from typing import Any

import pytest

from expunge.methods import PDU, SCRUB, AltPO
from expunge.recipes import recipe

PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pdu_tofu": (
        {"retain_weight": 100.0, "retain_budget": 0.3, "dual_step": 5.0, "dual_warmup": 5.0},
        {"learning_rate": 1e-5, "epochs": 10, "batch_size": 32},
    ),
    "altpo_tofu": (
        {"beta": 0.1, "draws": 5, "temperature": 1.0, "max_new_tokens": 200, "retain_weight": 2.0},
        {"learning_rate": 5e-5, "epochs": 10},
    ),
    "eco/copyright_llmu": (
        {"forget_weight": 0.1, "mismatch_weight": 1.0, "retain_weight": 1.0},
        {"learning_rate": 2e-5, "epochs": 5, "batch_size": 8, "schedule": "cosine"},
    ),
    "eco/copyright_scrub": (
        {"temperature": 4.0, "distill_weight": 0.001, "retain_weight": 1.0, "max_epochs": 4},
        {"learning_rate": 2e-5, "epochs": 5, "batch_size": 8},
    ),
    "eco/copyright_mismatch": ({"retain_weight": 1.0}, {"learning_rate": 2e-5, "epochs": 5, "batch_size": 8}),
}
"""Recipe -> fields of the method and of the training (arXiv 2506.05314, 2409.13474, 2406.07933)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_holds_the_published_values(name: str) -> None:
    said, (method, training) = recipe(name), PUBLISHED[name]
    assert method.items() <= said["method"].items()
    assert training.items() <= said["training"].items()


def test_defaults_are_the_published_values() -> None:
    for name, cls in (("pdu_tofu", PDU), ("eco/copyright_scrub", SCRUB)):
        assert cls.model_validate(recipe(name)["method"]) == cls()
    assert AltPO.model_validate(recipe("altpo_tofu")["method"]) == AltPO(retain_weight=2.0)
