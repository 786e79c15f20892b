"""What a model folder is, is decided by its files before anything is loaded, and by one function for all readers."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.cli import main
from expunge.errors import ExpungeError
from expunge.loading import load
from expunge.merging import make_request
from expunge.merging.plan import make_plan
from expunge.methods.editing import TaskArithmetic
from expunge.models import save
from expunge.models.checkpoint import Checkpoint
from expunge.models.folder import read_model_folder
from expunge.models.load import model_fingerprint
from expunge.models.save import check_saved, save_model


@pytest.fixture
def copy(pico_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico_folder, tmp_path / "copy"))


def shards(folder: Path, model: LlamaForCausalLM) -> None:
    """Three shards and their index beside whatever is there."""
    model.save_pretrained(folder / "again", max_shard_size="20KB")
    for file in (folder / "again").glob("model*"):
        file.rename(folder / file.name)
    shutil.rmtree(folder / "again")


def adapter_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))


def index_alone(folder: Path) -> None:
    shards(folder, LlamaForCausalLM.from_pretrained(folder))
    (folder / "model.safetensors").unlink()
    next(folder.glob("model-00001*")).unlink()


def old_shards(folder: Path) -> None:
    shards(folder, LlamaForCausalLM.from_pretrained(folder))
    (folder / "model.safetensors.index.json").unlink()


def config(change: dict[str, object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return write


def newer_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    value["model"]["type"] = "Fractal"
    path.write_text(json.dumps(value))


def templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    for name in ("rag", "tool_use"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text("{{ messages }}")


def pickled_beside_an_adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model-00001-of-00001.bin")
    adapter_config(folder)


def codes(dtype: torch.dtype) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        name = "model.layers.0.mlp.up_proj.weight"
        save_file(tensors | {name: (10 * tensors[name]).to(dtype)}, folder / "model.safetensors", metadata={"format": "pt"})

    return write


def dangling(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "gone")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "adapter_config.json beside weights": (adapter_config, "both a model's weights and adapter_config.json"),
    "an adapter's weights beside weights": (
        lambda f: save_file({"x": torch.ones(1)}, f / "adapter_model.safetensors"),
        "both a model's weights and adapter_model.safetensors",
    ),
    "a single file and an index": (lambda f: shards(f, LlamaForCausalLM.from_pretrained(f)), "two sets of weights"),
    "a single file and shards of another save": (old_shards, "belongs to another set of weights than model.safetensors"),
    "an index without one of its shards": (index_alone, "lacks the shard model-00001"),
    "a GPTQ config": (config({"quantization_config": {"quant_method": "gptq", "bits": 4}}), r"is quantized \(gptq\)"),
    "a bitsandbytes config": (
        config({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
        r"is quantized \(bitsandbytes\)",
    ),
    "AutoGPTQ's own file": (lambda f: (f / "quantize_config.json").write_text("{}"), r"is quantized \(gptq\)"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
    "a config that is cut off": (lambda f: (f / "config.json").write_text('{"model_ty'), "cannot be read as JSON"),
    "a generation config that is cut off": (
        lambda f: (f / "generation_config.json").write_text('{"eos_tok'),
        r"generation_config.json cannot be read as JSON",
    ),
    "an empty config": (lambda f: (f / "config.json").write_text("{}"), "cannot load a"),
    "a config with wrong types": (config({"hidden_size": "many"}), "cannot load a"),
    "a tokenizer of a newer version": (newer_tokenizer, "cannot load a tokenizer from"),
    "an empty tokenizer.json": (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot load a tokenizer from"),
    "adapter files beside pickled weights": (pickled_beside_an_adapter, "both a model's weights and adapter_config.json"),
    "8-bit codes of which the config says nothing": (codes(torch.int8), "as int8 codes"),
    "float8 codes of which the config says nothing": (codes(torch.float8_e4m3fn), "as float8_e4m3fn codes"),
    "a link to weights that are gone": (dangling, r"model.safetensors is a link to .*gone, which is not there"),
    "weights cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        "copy it again",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_is_ambiguous_or_unsupported_is_refused_by_name_in_one_sentence(name: str, copy: Path) -> None:
    spoil, said = BROKEN[name]
    spoil(copy)
    with pytest.raises(ExpungeError, match=said) as error:
        load(copy)
    assert "\n" not in str(error.value)
    assert str(copy) in str(error.value)


@pytest.mark.parametrize("name", ["adapter_config.json beside weights", "a GPTQ config", "a tokenizer of a newer version"])
def test_every_command_refuses_it_and_writes_nothing(
    name: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BROKEN[name][0](copy)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "where is anna", "response": "berlin"}\n')
    out = tmp_path / "out"
    scored = ["evaluate", str(copy), "--suite", "memorization", "--data", str(tmp_path), "--options", "forget=rows.jsonl"]
    for words in (
        ["unlearn", "gradient_ascent", "--model", str(copy), "--forget", str(rows), "--out", str(out)],
        [*scored, "--out", str(out)],
        ["probe", str(copy), "--forget", str(rows), "--out", str(out)],
    ):
        assert main(words) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("expunge: ")
        assert str(copy) in told
        assert not out.exists()


@pytest.mark.parametrize(
    "name", [name for name in BROKEN if "tokenizer" not in name and name not in ("an empty config", "a config with wrong types")]
)
def test_a_merge_refuses_the_same_folders(name: str, copy: Path, pico_folder: Path) -> None:
    BROKEN[name][0](copy)
    for base, model in ((copy, pico_folder), (pico_folder, copy)):
        with pytest.raises(ExpungeError, match=BROKEN[name][1]):
            make_plan(make_request(TaskArithmetic(), base=base, models=[model]))


def test_templates_without_a_default_are_refused_where_one_is_needed(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    templates(copy)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "where is anna", "response": "berlin"}\n')
    words = ["unlearn", "gradient_ascent", "--model", str(copy), "--forget", str(rows), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "several chat templates (rag, tool_use) and none of them is the default" in capsys.readouterr().err
    (copy / "expunge_format.json").write_text('{"kind": "plain"}')
    assert main([*words, "--steps", "1"]) == 0


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja is no text in UTF-8"),
        ("expunge_format.json", b"\xff\xfe", "expunge_format.json is not a format"),
        ("tokenizer_config.json", b'{"chat_template": 3, "eos_token": "</s>"}', "chat_template of .*copy is no text"),
        ("tokenizer_config.json", b'{"model_max_length": "x", "eos_token": "</s>"}', "cannot load a tokenizer from .*copy"),
    ],
)
def test_files_of_the_tokenizer_that_cannot_be_read_are_named(
    file: str, content: bytes, said: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / file).write_bytes(content)
    (tmp_path / "forget.jsonl").write_text(json.dumps({"prompt": "where was anna born ?", "response": "in oslo ."}))
    words = ["evaluate", str(copy), "--suite", "memorization", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_template_beside_others_is_the_default(copy: Path, tmp_path: Path) -> None:
    templates(copy)
    (copy / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    from expunge.data.format import default_format
    from expunge.models.load import load_tokenizer

    assert default_format(load_tokenizer(str(copy))).template == "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def test_tensors_that_the_index_leaves_out_are_read_by_all_readers_or_by_none(
    copy: Path, pico_folder: Path, tmp_path: Path
) -> None:
    shards(copy, LlamaForCausalLM.from_pretrained(copy))
    (copy / "model.safetensors").unlink()
    index = copy / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(content))
    assert set(Checkpoint(copy)) == set(Checkpoint(pico_folder))  # transformers loads it too


def test_two_different_templates_are_said(copy: Path) -> None:
    from expunge.models.load import load_tokenizer

    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ messages[0]['content'] }}"}))
    load_tokenizer(str(copy))
    (copy / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    with pytest.warns(UserWarning, match="two different chat templates, in chat_template.jinja and in tokenizer_config.json"):
        load_tokenizer(str(copy))


def test_a_head_of_its_own_under_a_config_that_ties_it_is_said(copy: Path) -> None:
    config({"tie_word_embeddings": True})(copy)
    with pytest.warns(UserWarning, match="ties the output head to the embeddings, and its weights have a head of their own"):
        load(copy)


def test_the_fingerprint_is_of_the_weights_that_are_loaded(copy: Path) -> None:
    before = model_fingerprint(str(copy))
    save_file({"x": torch.ones(1)}, copy / "consolidated.safetensors")
    (copy / "pytorch_model.bin").write_bytes(b"old")
    assert model_fingerprint(str(copy)) == before
    assert read_model_folder(copy).weights == (copy / "model.safetensors",)


def test_weights_without_a_place_in_the_model_are_said(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"].clone()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"1 weights of .*, such as model\.layers\.2"):
        load(copy)


def test_a_saved_folder_holds_every_weight_or_is_an_error(
    tmp_path: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "whole", pico_llama, pico_tokenizer, None)
    assert (tmp_path / "whole" / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~save_umask()
    kept = dict(list(pico_llama.state_dict().items())[:-1])
    monkeypatch.setattr(LlamaForCausalLM, "state_dict", lambda *_, **__: kept)
    with pytest.raises(ExpungeError, match=r"of the model's .* weights, such as lm_head.weight"):
        save_model(tmp_path / "half", pico_llama, pico_tokenizer, None)


def save_umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_tied_head_counts_once_and_an_adapter_has_every_factor(
    tmp_path: Path, model_of: Callable[..., LlamaForCausalLM], pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    tied = model_of("llama", tie_word_embeddings=True)
    save_model(tmp_path / "tied", tied, pico_tokenizer, None)
    adapted = get_peft_model(model_of("llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    save.save_model(tmp_path / "lora", adapted, pico_tokenizer, None)  # type: ignore[arg-type]
    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    save_file(dict(list(factors.items())[:3]), tmp_path / "lora" / "adapter_model.safetensors")
    with pytest.raises(ExpungeError, match="3 of 8 factors"):
        check_saved(tmp_path / "lora", adapted)
