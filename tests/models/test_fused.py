"""Kernels of others in a model's modules: which are exchanged, for how long, and that they are given what the model had.

Liger itself needs a GPU (benchmarks/gpu.py compares its values there); here plain functions stand in its place.
"""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.models.fused import available, fused
from expunge.models.hooks import capture

calls: list[str] = []


class Norm:
    @staticmethod
    def apply(hidden: Tensor, weight: Tensor, eps: float, offset: float, casting: str, in_place: bool, rows: None) -> Tensor:
        calls.append("norm")
        assert (offset, casting, in_place, rows) == (0.0, "llama", False, None)
        return nn.functional.rms_norm(hidden, weight.shape, weight, eps)


class Product:
    @staticmethod
    def apply(gate: Tensor, up: Tensor) -> Tensor:
        calls.append("product")
        return nn.functional.silu(gate) * up


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    package, ops = ModuleType("liger_kernel"), ModuleType("liger_kernel.ops")
    ops.LigerRMSNormFunction, ops.LigerSiLUMulFunction = Norm, Product  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", ops)
    calls.clear()


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(5, 17).view(2, 6)).logits
    return found


@pytest.mark.parametrize(("model_type", "modules"), [("llama", 7), ("mistral", 7), ("qwen2", 7), ("qwen3", 11)])
def test_the_values_are_the_models_own_and_its_modules_come_back(
    model_type: str, modules: int, model_of: Callable[..., PreTrainedModel]
) -> None:
    model = model_of(model_type)
    own = logits(model)
    with fused(model) as count:
        assert count == modules
        torch.testing.assert_close(logits(model), own, rtol=1e-5, atol=1e-5)
        assert calls.count("product") == 2
        assert calls.count("norm") == modules - 2
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(logits(model), own)


@pytest.mark.parametrize("model_type", ["gemma2", "gpt2", "olmo2", "granite"])
def test_a_family_with_another_formula_is_left_alone(model_type: str, model_of: Callable[..., PreTrainedModel]) -> None:
    with fused(model_of(model_type)) as count:
        assert count == 0


def test_what_a_hook_reads_inside_of_an_mlp_is_still_there(model_of: Callable[..., PreTrainedModel]) -> None:
    model = model_of("llama")
    with capture(model, {"model.layers.0.mlp.act_fn": "output"}) as captured, fused(model) as count:
        logits(model)
    assert count == 6
    assert captured["model.layers.0.mlp.act_fn"].shape == (2, 6, 48)


def test_without_a_gpu_there_is_none() -> None:
    assert not available("cpu")
