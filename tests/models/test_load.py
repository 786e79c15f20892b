"""Models and tokenizers load as said, or one sentence says why not."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.errors import ExpungeError
from expunge.loading import load
from expunge.models.load import causal_model, load_model, load_tokenizer, model_fingerprint
from expunge.start import find_start


@pytest.fixture
def copy(pico_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico_folder, tmp_path / "copy"))


def test_a_folder_loads_to_the_same_model_in_evaluation_mode(pico_folder: Path, pico_llama: LlamaForCausalLM) -> None:
    model = load_model(str(pico_folder), dtype="auto")
    assert not model.training
    assert model.device.type == "cpu"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), pico_llama.parameters(), strict=True))


def test_the_dtype_is_the_one_that_is_said(copy: Path) -> None:
    half = load_model(str(copy), dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    half.save_pretrained(copy)
    assert load_model(str(copy), dtype="float32").dtype == torch.float32
    assert load_model(str(copy), dtype="float16").dtype == torch.float16


@pytest.mark.parametrize(("supported", "memory", "expected"), [
    (True, 10**9, torch.bfloat16), (False, 10**9, torch.float32), (False, 10**4, torch.bfloat16),
])  # fmt: skip
def test_weights_are_widened_where_the_processor_cannot_compute_in_their_dtype_and_there_is_memory(
    copy: Path, monkeypatch: pytest.MonkeyPatch, supported: bool, memory: int, expected: torch.dtype
) -> None:
    load_model(str(copy), dtype="bfloat16").save_pretrained(copy)
    monkeypatch.setattr("expunge.models.load.computes", lambda dtype, device: supported)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory}[name])
    with warnings.catch_warnings(record=True) as said:
        model = load_model(str(copy), dtype="auto")
    assert {p.dtype for p in model.parameters()} == {expected} == {model.config.dtype}
    assert [str(w.message) for w in said if "--dtype bfloat16 keeps it" in str(w.message)] == [str(w.message) for w in said][
        : expected == torch.float32
    ]
    assert load_model(str(copy), dtype="bfloat16").dtype == torch.bfloat16


def test_the_tokenizer_beside_the_model_loads(pico_folder: Path, words: list[str]) -> None:
    tokenizer = load_tokenizer(str(pico_folder))
    assert tokenizer("anna berlin").input_ids == [1, 4 + words.index("anna"), 4 + words.index("berlin")]


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/models/x"])
def test_a_local_path_that_is_not_there_is_not_looked_for_on_the_hub(path: str) -> None:
    for open_it in (lambda: load_model(path, dtype="auto"), lambda: load_tokenizer(path), lambda: model_fingerprint(path)):
        with pytest.raises(ExpungeError, match="there is no model folder"):
            open_it()


def test_a_hub_id_that_cannot_be_had_is_advised_about() -> None:
    for open_it in (lambda: load_model("nobody/nothing", dtype="auto"), lambda: load_tokenizer("nobody/nothing")):
        with pytest.raises(ExpungeError, match="taken for a hub id: check the spelling and the network"):
            open_it()
    with pytest.raises(ExpungeError, match="neither a folder nor in the local hub cache"):
        model_fingerprint("nobody/nothing")


def test_pickled_weights_are_refused(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ExpungeError, match="as pickles only"):
        load_model(str(copy), dtype="auto")
    save_file({"x": torch.ones(1)}, copy / "something_else.safetensors")
    with pytest.raises(ExpungeError, match=r"holds neither model\.safetensors nor .*, only something_else\.safetensors"):
        load_model(str(copy), dtype="auto")
    (copy / "something_else.safetensors").unlink()
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(ExpungeError, match=r"no \*\.safetensors weights"):
        load_model(str(copy), dtype="auto")


def test_missing_weights_are_not_replaced_by_random_ones(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExpungeError, match=r"lacks 1 of its model.s weights, such as model\.layers\.1\.mlp\.down_proj\.weight"):
        load_model(str(copy), dtype="auto")


def test_damaged_folders_are_refused_in_one_sentence(copy: Path) -> None:
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ExpungeError, match="copy it again") as error:
        load_model(str(copy), dtype="auto")
    assert "\n" not in str(error.value)
    (copy / "model.safetensors").write_bytes(weights)
    tensors = {name: tensor.clone() for name, tensor in load_file(copy / "model.safetensors").items()}
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:5]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExpungeError, match=r"1 weights of another shape .*, such as lm_head\.weight: \[5, 32\] where \["):
        load_model(str(copy), dtype="auto")
    (copy / "config.json").write_text('{"model_type": "never_heard_of"}')
    with pytest.raises(ExpungeError, match="cannot load a model from"):
        load_model(str(copy), dtype="auto")
    (copy / "config.json").unlink()
    with pytest.raises(ExpungeError, match=r"holds no config\.json"):
        load_model(str(copy), dtype="auto")


def test_a_file_is_no_model_folder(copy: Path) -> None:
    with pytest.raises(ExpungeError, match="is a file; give the folder"):
        load_model(str(copy / "config.json"), dtype="auto")


def test_a_folder_without_tokenizer_is_refused(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ExpungeError, match="holds no tokenizer"):
        load_tokenizer(str(copy))


def test_a_plain_adapter_without_tokenizer_is_refused_with_its_merge(pico_folder: Path, tmp_path: Path) -> None:
    said = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": str(pico_folder)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    command = f"expunge merge task_arithmetic --base {pico_folder} --models {tmp_path} --out OUT"
    for open_it in (load_tokenizer, load, lambda path: find_start(path).size(trust_remote_code=False)):
        with pytest.raises(ExpungeError) as error:
            open_it(str(tmp_path))
        assert str(error.value).endswith(command)


def test_the_fingerprint_is_of_configuration_and_weights_and_nothing_else(copy: Path, pico_folder: Path) -> None:
    before = model_fingerprint(str(pico_folder))
    assert model_fingerprint(str(copy)) == before
    (copy / "README.md").write_text("another")
    assert model_fingerprint(str(copy)) == before
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config + " ")
    assert model_fingerprint(str(copy)) != before
    (copy / "config.json").write_text(config)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert model_fingerprint(str(copy)) != before


def test_the_causal_model_is_found_in_any_wrapper(pico_llama: LlamaForCausalLM) -> None:
    assert causal_model(pico_llama) is pico_llama
    assert causal_model(nn.Sequential(nn.Sequential(pico_llama))) is pico_llama
    assert causal_model(torch.compile(pico_llama)) is pico_llama


def test_a_tokenizer_that_drops_merges_at_random_is_read_the_same_each_time(copy: Path) -> None:
    made = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "</s>": 3}, merges=[("a", "b")], dropout=0.5))
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>").save_pretrained(copy)
    with pytest.warns(UserWarning, match="drops 50% of its merges at random"):
        tokenizer = load_tokenizer(str(copy))
    assert {tuple(tokenizer("abab")["input_ids"]) for _ in range(20)} == {(2, 2)}


def test_weights_that_are_missing_are_named_in_one_sentence_and_in_no_table(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ExpungeError, match=r"lacks 9 of its model's weights"):
        load_model(str(copy), dtype="auto")
    assert "MISSING" not in "".join(capfd.readouterr())
