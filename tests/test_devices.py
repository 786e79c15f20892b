"""The defaults on a GPU, on one that is pretended: what torch would be asked and told is recorded."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from expunge import ExpungeError, Training, devices
from expunge.devices import WIDEST, arithmetic, default_device, let_segments_grow, moved, out_of_memory, tokens_that_fit
from expunge.evaluation.engine import Engine
from expunge.training import loop
from expunge.training.sharing import in_bfloat16

CUDA = torch.device("cuda")
GIB = 2**30


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is set on the pretended GPU: 80 GiB, of which 60 are free, 4 reserved by torch and 3 of these in use."""
    said: list[str] = []
    cuda = {
        "is_available": lambda: True,
        "get_device_name": lambda *_: "NVIDIA H200",
        "get_device_properties": lambda *_: SimpleNamespace(total_memory=80 * GIB),
        "mem_get_info": lambda *_: (60 * GIB, 80 * GIB),
        "memory_reserved": lambda *_: 4 * GIB,
        "memory_allocated": lambda *_: 3 * GIB,
        "empty_cache": lambda: said.append("empty_cache"),
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", said.append)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for variable in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(variable, raising=False)
    return said


def test_a_model_goes_to_the_gpu_where_there_is_one(told: list[str]) -> None:
    assert default_device() == CUDA


def test_without_one_it_stays_on_the_processor() -> None:
    assert default_device() == torch.device("cpu")
    assert arithmetic() == "cpu"


def test_segments_grow_unless_the_user_has_set_the_allocator(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    let_segments_grow()
    assert told == ["expandable_segments:True"]
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    let_segments_grow()
    assert told == ["expandable_segments:True"]


def test_without_a_gpu_no_allocator_is_set(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    let_segments_grow()
    assert told == []


def test_batches_are_copied_from_pinned_memory_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def to(self: torch.Tensor, *where: Any, **how: Any) -> torch.Tensor:
        asked.append((*where, how))
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: asked.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", to)
    moved(torch.ones(2), CUDA)
    assert asked == ["pinned", (CUDA, {"non_blocking": True})]
    asked.clear()
    moved(torch.ones(2), "cpu")
    assert "pinned" not in asked


def test_tf32_is_off_and_said(told: list[str]) -> None:
    assert not torch.backends.cuda.matmul.allow_tf32
    assert arithmetic() == "NVIDIA H200, CUDA 13.0, TF32 off"
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert arithmetic().endswith("TF32 on")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_a_batch_takes_a_share_of_what_is_free_within_bounds(told: list[str]) -> None:
    """61 GiB are free: 60 in the device, and 1 that torch has reserved and does not use."""
    assert tokens_that_fit(CUDA, 2**21, usual=7) == int(devices.SHARE * 61 * GIB) // 2**21
    assert tokens_that_fit(CUDA, 2**10, usual=7) == WIDEST
    assert tokens_that_fit(CUDA, 2**40, usual=7) == 256
    assert tokens_that_fit(torch.device("cpu"), 2**21, usual=7) == 7


def test_the_engine_asks_how_much_fits_with_the_bytes_of_its_model(
    pico_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("expunge.evaluation.engine.tokens_that_fit", lambda _, size, usual: asked.append(size) or 300)
    assert Engine(pico_llama, 0).max_tokens == 300
    Engine(pico_llama.bfloat16(), 0)
    assert asked[1] < asked[0]


def test_out_of_memory_names_the_card_and_frees_the_cache(told: list[str]) -> None:
    error = out_of_memory("in step 2", "take --micro-batch-size 2")
    assert isinstance(error, ExpungeError)
    assert str(error) == "out of memory in step 2 (NVIDIA H200, 80 GiB); take --micro-batch-size 2"
    assert told == ["empty_cache"]


@pytest.mark.parametrize(
    ("precision", "lora", "dtype", "half"),
    [
        ("auto", False, torch.bfloat16, False),  # the weights are bfloat16 themselves
        ("auto", True, torch.bfloat16, True),  # the adapters are not
        ("auto", True, torch.float32, False),
        ("bfloat16", False, torch.float32, True),
        ("float32", True, torch.bfloat16, False),
    ],
)
def test_arithmetic_is_that_of_the_weights_adapters_included(precision: Any, lora: bool, dtype: torch.dtype, half: bool) -> None:
    assert in_bfloat16(Training(precision=precision, lora=lora), dtype) is half


@pytest.mark.parametrize(("dtype", "fused"), [(torch.float32, True), (torch.bfloat16, None)])
def test_the_optimizer_is_one_kernel_on_a_gpu_and_for_float32(dtype: torch.dtype, fused: bool | None) -> None:
    weights = {"w": torch.nn.Parameter(torch.ones(2, dtype=dtype))}
    assert loop._optimizer(weights, Training(), torch.device("cpu")).defaults["fused"] is fused


def test_attention_is_torchs_own(pico_folder: Any) -> None:
    from expunge.models.load import load_model

    assert load_model(str(pico_folder), dtype="auto").config._attn_implementation == "sdpa"
