"""TOFU's own per-sample logs of two Llama-2-7B models, through the metric functions of this library."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from expunge.evaluation.metrics.base import Floats
from expunge.evaluation.metrics.forget_quality import forget_quality
from expunge.evaluation.metrics.model_utility import model_utility
from expunge.evaluation.metrics.probability import probability, probability_among
from expunge.evaluation.metrics.truth_ratio import truth_ratio, truthful

RETAIN, FORGET = "eval_log.json", "eval_log_forget.json"
AUTHORS, WORLD = "eval_real_author_wo_options.json", "eval_real_world_wo_options.json"


@cache
def read(root: Path, model: str) -> dict[str, dict[str, dict[str, object]]]:
    file = root / "tofu_eval_logs" / f"llama2-7b_{model}_wd0.01_eval_log_aggregated.json"
    found: dict[str, dict[str, dict[str, object]]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def logged(root: Path, model: str, part: str, key: str) -> Floats:
    return np.array(list(read(root, model)[part][key].values()), dtype=np.float64)


def ratios(root: Path, model: str, part: str, *, geometric: bool) -> Floats:
    right = -logged(root, model, part, "avg_paraphrased_loss")[:, None]
    return truth_ratio(right, -logged(root, model, part, "average_perturb_loss"), geometric=geometric)


def utility(root: Path, model: str, *, geometric: bool) -> float:
    groups = []
    for part in (RETAIN, AUTHORS, WORLD):
        right = -logged(root, model, part, "avg_gt_loss")
        wrong = -logged(root, model, part, "average_perturb_loss")
        said = probability(right) if part == RETAIN else probability_among(right, wrong)
        truth = truthful(ratios(root, model, part, geometric=geometric))
        groups.append([said, logged(root, model, part, "rougeL_recall"), truth])
    return model_utility(groups)[0]


@pytest.mark.real
def test_geometric_truth_ratio_is_the_logged_one(data_root: Path) -> None:
    for model in ("full", "retain90"):
        for part in (FORGET, RETAIN, AUTHORS, WORLD):
            ours = ratios(data_root, model, part, geometric=True)
            np.testing.assert_allclose(ours, logged(data_root, model, part, "truth_ratio"), rtol=1e-5)


@pytest.mark.real
@pytest.mark.parametrize(
    ("model", "geometric", "golden"),
    [("full", True, 0.6227), ("retain90", True, 0.6137), ("full", False, 0.5859)],
)
def test_model_utility(data_root: Path, model: str, geometric: bool, golden: float) -> None:
    value = utility(data_root, model, geometric=geometric)
    print(f"model utility {model}, {'geometric' if geometric else 'arithmetic'} truth ratio: {value:.4f}")
    assert value == pytest.approx(golden, abs=5e-5)


@pytest.mark.real
@pytest.mark.parametrize(("geometric", "golden"), [(True, 1.83e-21), (False, 6.03e-23)])
def test_forget_quality_of_the_full_model_against_retain90(data_root: Path, geometric: bool, golden: float) -> None:
    full, retain = (ratios(data_root, model, FORGET, geometric=geometric) for model in ("full", "retain90"))
    value = forget_quality(full, retain)
    print(f"forget quality, {'geometric' if geometric else 'arithmetic'} truth ratio: KS p = {value:.3g}")
    assert value == pytest.approx(golden, rel=5e-3)
