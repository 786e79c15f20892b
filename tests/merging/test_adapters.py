"""LoRA folders are merged by what they do to weights; PEFT itself is the judge."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import expunge.artifact
import expunge.loading
from expunge import Training, unlearn
from expunge.errors import ExpungeError
from expunge.merging import merge
from expunge.methods import GradientAscent
from expunge.methods.editing import DareLinear, Linear, Slerp, TaskArithmetic, Ties
from tests.conftest import make_llama

from .conftest import dense, read_weights


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def adapter(folder: Path, base: Path, seed: int, **config: Any) -> Path:
    """An adapter with noise in both factors."""
    torch.manual_seed(seed)
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]} | config
    model = get_peft_model(load(base), LoraConfig(**fields))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                p.copy_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder)
    return folder


def merged_by_peft(folder: Path, base: Path) -> dict[str, torch.Tensor]:
    merged = PeftModel.from_pretrained(load(base), folder).merge_and_unload()
    return {n: p.detach() for n, p in merged.named_parameters()}


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 32}},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_adding_an_adapter_is_what_peft_merges(variant: str, tmp_path: Path, pico_folder: Path) -> None:
    folder = adapter(tmp_path / "a", pico_folder, 1, **VARIANTS[variant])
    merge(TaskArithmetic(), base=pico_folder, models=[folder], out=tmp_path / "out", quiet=True)
    found, expected = read_weights(tmp_path / "out/artifact"), merged_by_peft(folder, pico_folder)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=2e-6), name
    base = read_weights(pico_folder)
    assert any(not torch.equal(found[n], base[n]) for n in base)


def test_weights_stored_transposed_get_the_transposed_difference(
    tmp_path: Path, model_of: Callable[..., nn.Module], pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    """GPT-2's Conv1D: in x out."""
    model_of("gpt2").save_pretrained(tmp_path / "base")
    pico_tokenizer.save_pretrained(tmp_path / "base")
    folder = adapter(tmp_path / "a", tmp_path / "base", 1, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    merge(TaskArithmetic(scale=-1), base=tmp_path / "base", models=[folder], out=tmp_path / "out", quiet=True)
    found, plus, base = (
        read_weights(tmp_path / "out/artifact"),
        merged_by_peft(folder, tmp_path / "base"),
        read_weights(tmp_path / "base"),
    )
    changed = {n for n, t in base.items() if not torch.equal(found[n], t)}
    assert changed == {n for n in base if n.endswith(("c_attn.weight", "c_proj.weight"))}
    assert all(torch.allclose(found[n] - base[n], base[n] - plus[n], atol=1e-5) for n in changed)


def test_a_resized_vocabulary_is_merged_into_a_base_of_its_size_and_refused_by_another(tmp_path: Path, pico_folder: Path) -> None:
    """PEFT saves the trained embedding and head three times then: under their own names and under two of its wrapper."""
    torch.manual_seed(0)
    model = load(pico_folder)
    model.resize_token_embeddings(94, mean_resizing=False)
    model.save_pretrained(tmp_path / "resized")
    shutil.copy(pico_folder / "tokenizer.json", tmp_path / "resized")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                p.copy_(0.1 * torch.randn_like(p))
    adapted.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    merge(TaskArithmetic(), base=tmp_path / "resized", models=[tmp_path / "a"], out=tmp_path / "out", quiet=True)
    found, expected = read_weights(tmp_path / "out/artifact"), merged_by_peft(tmp_path / "a", tmp_path / "resized")
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=2e-6), name
    with pytest.raises(ExpungeError, match=r"has 94 rows in .* and 90 in the base: their vocabularies differ"):
        merge(TaskArithmetic(), base=pico_folder, models=[tmp_path / "a"], out=tmp_path / "other", quiet=True)


class TestATiedEmbedding:
    @pytest.fixture
    def tied(self, tmp_path: Path, pico_tokenizer: PreTrainedTokenizerFast) -> Path:
        config = make_llama().config
        config.tie_word_embeddings = True
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
        pico_tokenizer.save_pretrained(tmp_path / "tied")
        return tmp_path / "tied"

    def test_a_lora_on_it_changes_the_head_too_and_the_result_says_so(self, tmp_path: Path, tied: Path) -> None:
        folder = adapter(tmp_path / "a", tied, 1, target_modules=["embed_tokens"])
        with pytest.warns(UserWarning, match="LoRA on model.embed_tokens.weight, to which the base ties its output head"):
            result = merge(TaskArithmetic(), base=tied, models=[folder], out=tmp_path / "out", quiet=True)
        assert "merging changes the head too" in result.sentences()
        ids = torch.arange(8)[None]
        with torch.no_grad():
            beside = PeftModel.from_pretrained(load(tied), folder)(ids).logits
            merged = load(tmp_path / "out/artifact")(ids).logits
        assert not torch.allclose(beside, merged, atol=1e-2)  # which is what there is to be said

    def test_other_adapters_on_that_base_and_embeddings_of_untied_ones_need_no_warning(
        self, tmp_path: Path, tied: Path, pico_folder: Path, recwarn: pytest.WarningsRecorder
    ) -> None:
        for name, base, target in (("a", tied, "q_proj"), ("b", pico_folder, "embed_tokens")):
            folder = adapter(tmp_path / name, base, 1, target_modules=[target])
            recwarn.clear()
            result = merge(TaskArithmetic(), base=base, models=[folder], out=tmp_path / f"{name}_out", quiet=True)
            assert not any("output head" in str(w.message) for w in recwarn)
            assert "head" not in result.sentences()


def test_ties_of_adapters_is_ties_of_the_merged_models(tmp_path: Path, pico_folder: Path) -> None:
    folders = [adapter(tmp_path / f"a{i}", pico_folder, i, r=2 + i) for i in range(3)]
    method = Ties(density=0.3, scope="global_changed")
    merge(method, base=pico_folder, models=folders, out=tmp_path / "out", quiet=True)
    expected = dense(method, read_weights(pico_folder), [merged_by_peft(f, pico_folder) for f in folders])
    found = read_weights(tmp_path / "out/artifact")
    differing = sum(int(((found[n] - t).abs() > 1e-5).sum()) for n, t in expected.items())
    # rounding of the two roads can move single entries over a cut or a sign, no more
    assert differing <= 4
    assert sum(int((t != read_weights(pico_folder)[n]).sum()) for n, t in expected.items()) > 1000


def test_adapters_and_whole_models_merge_together(tmp_path: Path, pico_folder: Path, pico_llama: nn.Module) -> None:
    folder = adapter(tmp_path / "a", pico_folder, 1)
    base = read_weights(pico_folder)
    with torch.no_grad():
        pico_llama.lm_head.weight.add_(1)
    pico_llama.save_pretrained(tmp_path / "full")
    merge(Linear(weights=(1, 3)), base=pico_folder, models=[folder, tmp_path / "full"], out=tmp_path / "out", quiet=True)
    found, other = read_weights(tmp_path / "out/artifact"), merged_by_peft(folder, pico_folder)
    for name, tensor in base.items():
        expected = (other[name] + 3 * (tensor + (1 if name == "lm_head.weight" else 0))) / 4
        assert torch.allclose(found[name], expected, atol=2e-6), name


class TestWrittenAsAnAdapter:
    def test_a_sum_fits_into_the_sum_of_ranks(self, tmp_path: Path, pico_folder: Path) -> None:
        folders = [adapter(tmp_path / "a", pico_folder, 1, r=3), adapter(tmp_path / "b", pico_folder, 2, r=4)]
        method = TaskArithmetic(weights=(1, -2))
        result = merge(method, base=pico_folder, models=folders, out=tmp_path / "out", write="adapter", rank=7, quiet=True)
        assert result.residual is not None
        assert result.residual < 1e-5
        merge(method, base=pico_folder, models=folders, out=tmp_path / "weights", quiet=True)
        expected = read_weights(tmp_path / "weights/artifact")
        found = merged_by_peft(tmp_path / "out/artifact", pico_folder)
        assert all(torch.allclose(found[n], t, atol=1e-5) for n, t in expected.items())
        assert expunge.artifact.verify(tmp_path / "out").kind == "adapter"
        assert isinstance(expunge.loading.load(tmp_path / "out")[0], PeftModel)

    def test_the_residual_is_what_the_rank_leaves_out(self, tmp_path: Path, pico_folder: Path) -> None:
        folders = [adapter(tmp_path / f"a{i}", pico_folder, i) for i in range(2)]
        method = Ties(density=0.5, scope="per_tensor")
        result = merge(method, base=pico_folder, models=folders, out=tmp_path / "out", write="adapter", rank=5, quiet=True)
        merge(method, base=pico_folder, models=folders, out=tmp_path / "weights", quiet=True)
        base, whole = read_weights(pico_folder), read_weights(tmp_path / "weights/artifact")
        low = merged_by_peft(tmp_path / "out/artifact", pico_folder)
        left, all_ = (
            sum((a[n].double() - b[n].double()).square().sum() for n in base) ** 0.5 for a, b in ((low, whole), (whole, base))
        )
        assert result.residual == pytest.approx(float(left / all_), rel=1e-3)
        assert 0.05 < result.residual < 0.95
        assert f"leaves out {100 * result.residual:.3g} %" in result.sentences()

    def test_an_embedding_and_a_rank_above_a_side(self, tmp_path: Path, pico_folder: Path) -> None:
        folder = adapter(tmp_path / "a", pico_folder, 1, target_modules=["embed_tokens", "k_proj"])
        result = merge(
            TaskArithmetic(scale=-1),
            base=pico_folder,
            models=[folder],
            out=tmp_path / "out",
            write="adapter",
            rank=20,
            quiet=True,
        )
        assert result.residual is not None
        assert result.residual < 1e-5
        found, plus = (merged_by_peft(f, pico_folder) for f in (tmp_path / "out/artifact", folder))
        base = read_weights(pico_folder)
        assert json.loads((tmp_path / "out/artifact/adapter_config.json").read_text())["rank_pattern"]
        assert all(torch.allclose(found[n] - t, t - plus[n], atol=1e-5) for n, t in base.items())

    @pytest.mark.parametrize(
        ("method", "flags", "words"),
        [
            (Ties(), {}, "needs the rank"),
            (Slerp(), {"rank": 4}, "moves whole weights"),
            (Linear(weights=(2,), normalize=False), {"rank": 4}, "whole"),
        ],
    )
    def test_what_has_no_adapter_is_refused(
        self, method: Any, flags: dict[str, int], words: str, tmp_path: Path, pico_folder: Path
    ) -> None:
        folder = adapter(tmp_path / "a", pico_folder, 1)
        with pytest.raises(ExpungeError, match=words):
            merge(method, base=pico_folder, models=[folder], out=tmp_path / "out", write="adapter", **flags)

    def test_a_whole_model_cannot_become_one(self, tmp_path: Path, pico_folder: Path) -> None:
        with pytest.raises(ExpungeError, match="which no adapter can"):
            merge(Ties(), base=pico_folder, models=[pico_folder], out=tmp_path / "out", write="adapter", rank=4)


class TestRefusals:
    def edited(self, tmp_path: Path, base: Path, **fields: Any) -> Path:
        folder = adapter(tmp_path / "a", base, 1)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
        return folder

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"use_dora": True}, "use_dora"),
            ({"peft_type": "IA3"}, "type IA3"),
            ({"init_lora_weights": "pissa_niter_4"}, "changed its base"),
            ({"init_lora_weights": "loftq"}, "changed its base"),
            ({"init_lora_weights": "lora_ga"}, "changed its base"),
            ({"alora_invocation_tokens": [7, 8]}, "alora_invocation_tokens"),
            ({"trainable_token_indices": [5]}, "trainable_token_indices"),
            ({"r": 16}, "have rank 4, and adapter_config.json says 16"),
            ({"rank_pattern": {"q_proj": 2}}, r"self_attn\.q_proj have rank 4, and adapter_config.json says 2"),
            ({"lora_alpha": None}, "lora_alpha None, which is no number"),
        ],
    )
    def test_adapters_that_are_no_plain_product(
        self, fields: dict[str, Any], words: str, tmp_path: Path, pico_folder: Path
    ) -> None:
        with pytest.raises(ExpungeError, match=words):
            merge(Ties(), base=pico_folder, models=[self.edited(tmp_path, pico_folder, **fields)], out=tmp_path / "out")

    def test_an_adapter_that_expunge_trained_on_other_weights_of_the_same_shape_is_said(
        self, tmp_path: Path, pico_folder: Path
    ) -> None:
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"prompt": "where is anna ?", "response": "oslo"}\n')
        training = Training(steps=1, learning_rate=1e-3, lora=True)
        unlearn(GradientAscent(), model=pico_folder, forget=rows, out=tmp_path / "run", training=training, quiet=True)
        shutil.copytree(pico_folder, tmp_path / "other")
        make_llama(seed=1).save_pretrained(tmp_path / "other")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            merge(TaskArithmetic(), base=pico_folder, models=[tmp_path / "run"], out=tmp_path / "own", quiet=True)
        with pytest.warns(UserWarning, match="was trained on a model with hash .*: what is added is the change of another model"):
            result = merge(TaskArithmetic(), base=tmp_path / "other", models=[tmp_path / "run"], out=tmp_path / "out", quiet=True)
        assert "the change of another model" in result.sentences()

    def test_an_adapter_of_another_base(self, tmp_path: Path, pico_folder: Path) -> None:
        make_llama(width=64).save_pretrained(tmp_path / "wide")
        folder = adapter(tmp_path / "a", tmp_path / "wide", 1)
        with pytest.raises(ExpungeError, match=r"the adapter of .* makes \(\d+, \d+\), but the base's weight is"):
            merge(DareLinear(), base=pico_folder, models=[folder], out=tmp_path / "out")
