"""Adapters from adapters: two PEFT folders in, one out. PEFT itself loads and judges the result."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import expunge
from expunge.cli import main
from expunge.errors import ExpungeError
from expunge.merging import factor_merge, merge, merge_adapters
from expunge.merging.factor_folders import finite
from expunge.methods.editing import AdapterAddition, AdapterSubtraction, Ethos, ExtSub, TaskArithmetic
from tests.methods.editing.test_factors import literal_ext_sub

from .conftest import read_weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:expert and anti-expert are nearly", "ignore:.*rows are changed by the anti-expert"
)

IDS = torch.tensor([[3, 9, 4, 12, 7, 5]])


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def adapter(folder: Path, base: Path, seed: int, kind: Any = LoraConfig, near: float = 0.1, **fields: Any) -> Path:
    """An adapter with noise in everything that it has."""
    torch.manual_seed(seed)
    if kind is LoraConfig:
        fields = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | fields
    model = get_peft_model(load(base), kind(task_type="CAUSAL_LM", **fields))
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.copy_((1.0 if kind is IA3Config else 0.0) + near * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def changes(folder: Path, base: Path) -> dict[str, Tensor]:
    """What an adapter does to each weight, as PEFT merges it."""
    start = read_weights(base)
    merged = PeftModel.from_pretrained(load(base), folder).merge_and_unload()
    return {n: p.detach().double() - start[n].double() for n, p in merged.named_parameters()}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits  # type: ignore[no-any-return]


class TestLoRA:
    def test_peft_loads_the_result_and_its_logits_are_those_of_the_formula(self, tmp_path: Path, pico_folder: Path) -> None:
        """Ranks, alphas, targets and rsLoRA differ between the two."""
        expert = adapter(tmp_path / "e", pico_folder, 1)
        anti = adapter(tmp_path / "a", pico_folder, 2, r=3, lora_alpha=9, use_rslora=True, target_modules=["q_proj", "down_proj"])
        merge_adapters(ExtSub(alpha=0.8), models=[expert, anti], out=tmp_path / "out")
        plus, minus = changes(expert, pico_folder), changes(anti, pico_folder)
        model = load(pico_folder)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "q_proj" in name:
                    parameter += literal_ext_sub(plus[name], minus[name], 0.8).float()
                elif "v_proj" in name:
                    parameter += plus[name].float()
        found = PeftModel.from_pretrained(load(pico_folder), tmp_path / "out/artifact")
        assert (logits(found) - logits(model)).abs().max() < 2e-6
        assert (logits(model) - logits(load(pico_folder))).abs().max() > 1e-2
        ours, _ = expunge.load(tmp_path / "out")
        assert (logits(ours) - logits(found)).abs().max() < 1e-6

    def test_merged_it_is_a_plain_model(self, tmp_path: Path, pico_folder: Path) -> None:
        adapters = [adapter(tmp_path / n, pico_folder, i) for i, n in enumerate("ea")]
        merge_adapters(ExtSub(), models=adapters, out=tmp_path / "out")
        merge(TaskArithmetic(), base=pico_folder, models=[tmp_path / "out"], out=tmp_path / "full", quiet=True)
        found = PeftModel.from_pretrained(load(pico_folder), tmp_path / "out/artifact")
        assert (logits(found) - logits(load(tmp_path / "full/artifact"))).abs().max() < 1e-5

    def test_the_configuration_says_the_true_rank_and_base(self, tmp_path: Path, pico_folder: Path) -> None:
        expert = adapter(tmp_path / "e", pico_folder, 1, r=4)
        anti = adapter(tmp_path / "a", pico_folder, 2, r=3, target_modules=["q_proj"])
        result = merge_adapters(AdapterSubtraction(), models=[expert, anti], out=tmp_path / "out")
        config = json.loads((tmp_path / "out/artifact/adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], result.rank) == (7, 7, 7)
        assert config["base_model_name_or_path"] == str(pico_folder)
        for key, tensor in load_file(tmp_path / "out/artifact/adapter_model.safetensors").items():
            assert tensor.shape[0 if "lora_A" in key else 1] == (7 if "q_proj" in key else 4)
        assert result.rank == 7
        assert expunge.verify(tmp_path / "out").kind == "adapter"

    def test_nothing_of_a_training_comes_along(self, tmp_path: Path, pico_folder: Path) -> None:
        adapters = [adapter(tmp_path / n, pico_folder, i) for i, n in enumerate("ea")]
        for name in ("optimizer.pt", "rng_state_0.pth", "scheduler.pt", "trainer_state.json", "training_args.bin"):
            (tmp_path / "e" / name).write_bytes(b"x")
        merge_adapters(ExtSub(), models=adapters, out=tmp_path / "out")
        found = {f.name for f in (tmp_path / "out/artifact").iterdir()}
        assert found == {
            "adapter_config.json", "adapter_model.safetensors",
            "expunge.json", "README.md", "tokenizer.json", "tokenizer_config.json",
        }  # fmt: skip

    def test_weights_stored_transposed(
        self, tmp_path: Path, model_of: Callable[..., nn.Module], pico_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        model_of("gpt2").save_pretrained(tmp_path / "base")
        pico_tokenizer.save_pretrained(tmp_path / "base")
        fields = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
        adapters = [adapter(tmp_path / n, tmp_path / "base", i, **fields) for i, n in enumerate("ea")]
        merge_adapters(ExtSub(alpha=1), models=adapters, out=tmp_path / "out")
        plus, minus, found = (changes(f, tmp_path / "base") for f in (*adapters, tmp_path / "out/artifact"))
        for name in (n for n in plus if "c_attn.weight" in n or "c_proj.weight" in n):
            expected = literal_ext_sub(plus[name].T, minus[name].T, 1).T
            torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4)

    def test_an_embedding(self, tmp_path: Path, pico_folder: Path) -> None:
        adapters = [adapter(tmp_path / n, pico_folder, i, target_modules=["embed_tokens"]) for i, n in enumerate("ea")]
        result = merge_adapters(AdapterSubtraction(alpha=0.5), models=adapters, out=tmp_path / "out")
        plus, minus, found = (changes(f, pico_folder) for f in (*adapters, tmp_path / "out/artifact"))
        name = "model.embed_tokens.weight"
        torch.testing.assert_close(found[name], plus[name] - 0.5 * minus[name], atol=1e-5, rtol=1e-4)
        assert "copy of model.embed_tokens.weight is the base's" in result.sentences()

    def test_recompressed_it_is_smaller_and_says_what_is_lost(self, tmp_path: Path, pico_folder: Path) -> None:
        adapters = [adapter(tmp_path / n, pico_folder, i) for i, n in enumerate("ea")]
        merge_adapters(ExtSub(), models=adapters, out=tmp_path / "whole")
        result = merge_adapters(ExtSub(), models=adapters, out=tmp_path / "small", rank=3)
        whole, small = (changes(tmp_path / n / "artifact", pico_folder) for n in ("whole", "small"))
        lost, all_ = (
            sum(float((a[n] - b[n]).square().sum()) for n in a)
            for a, b in ((whole, small), (whole, dict.fromkeys(whole, torch.zeros(()))))
        )
        assert result.rank == 3
        assert result.residual == pytest.approx((lost / all_) ** 0.5, rel=1e-3)
        assert f"leaves out {100 * result.residual:.3g} %" in result.sentences()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_stored_in_another_dtype_it_is_the_merge_of_the_same_numbers_in_float32(
        self, dtype: torch.dtype, tmp_path: Path, pico_folder: Path
    ) -> None:
        adapters = [adapter(tmp_path / n, pico_folder, i) for i, n in enumerate("ea")]
        for folder in adapters:
            file = folder / "adapter_model.safetensors"
            rounded = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
            shutil.copytree(folder, tmp_path / "wide" / folder.name)
            save_file({n: t.float() for n, t in rounded.items()}, tmp_path / "wide" / folder.name / file.name)
            save_file(rounded, file)
        merge_adapters(ExtSub(), models=adapters, out=tmp_path / "out")
        merge_adapters(ExtSub(), models=[tmp_path / "wide" / n for n in "ea"], out=tmp_path / "wide/out")
        files = [folder / "out/artifact/adapter_model.safetensors" for folder in (tmp_path, tmp_path / "wide")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert {t.dtype for t in load_file(files[0]).values()} == {torch.float32}

    def test_what_is_written_is_rounded_as_torch_rounds_it(self) -> None:
        """To nearest and ties to even, to numbers below the normal range and to zero too."""
        step = 2.0**-24
        ties = [sign * (1 + k * step) for sign in (1, -1) for k in range(9)]
        small = [2.0**-149 * k / 4 for k in range(12)]
        largest = float(torch.finfo(torch.float32).max)
        wide = np.array([*ties, *small, 2.0**-127, 0.0, -0.0, largest, -largest, largest * (1 + 2.0**-26), np.pi])
        found = finite(wide, "w")
        expected = torch.from_numpy(wide).float().numpy()
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))
        for bad in (largest * (1 + 2.0**-24), -1e39, np.inf, np.nan):
            with pytest.raises(ExpungeError, match="the new w leaves the range of float32"):
                finite(np.array([1.0, bad]), "w")

    def test_ethos_reads_the_base_and_needs_a_rank(self, tmp_path: Path, pico_folder: Path) -> None:
        adapters = [adapter(tmp_path / n, pico_folder, i) for i, n in enumerate("ea")]
        with pytest.raises(ExpungeError, match="is not of low rank; give --rank"):
            merge_adapters(Ethos(), models=adapters, out=tmp_path / "out")
        result = merge_adapters(Ethos(threshold=0, alpha=1), models=adapters, out=tmp_path / "out", rank=32)
        plus, minus, found = (changes(f, pico_folder) for f in (*adapters, tmp_path / "out/artifact"))
        name = "model.layers.0.self_attn.q_proj.weight"  # square, so that its singular vectors span everything
        torch.testing.assert_close(found[name], plus[name] - minus[name], atol=1e-5, rtol=1e-4)
        assert result.residual < 1e-6


class TestVectors:
    @pytest.mark.parametrize(
        ("method", "formula"),
        [
            (AdapterSubtraction(alpha=0.5), lambda p, m: p - 0.5 * m),
            (AdapterAddition(alpha=0.5), lambda p, m: p + 0.5 * m),
            (ExtSub(alpha=0.5), lambda p, m: literal_ext_sub(p.reshape(1, -1), m.reshape(1, -1), 0.5).reshape(p.shape)),
        ],
        ids=["subtraction", "addition", "ext_sub"],
    )
    def test_ia3_differs_from_one(self, method: Any, formula: Any, tmp_path: Path, pico_folder: Path) -> None:
        """The release's subtraction and addition come out near 2 where nothing was learned."""
        fields: dict[str, Any] = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
        expert = adapter(tmp_path / "e", pico_folder, 1, IA3Config, **fields)
        fields["target_modules"] = ["k_proj", "down_proj"]
        anti = adapter(tmp_path / "a", pico_folder, 2, IA3Config, **fields)
        merge_adapters(method, models=[expert, anti], out=tmp_path / "out")
        plus, minus, found = (load_file(f / "adapter_model.safetensors") for f in (expert, anti, tmp_path / "out/artifact"))
        assert set(found) == set(plus)
        for key, vector in found.items():
            expected = 1 + formula(plus[key] - 1, minus[key] - 1) if key in minus else plus[key]
            torch.testing.assert_close(vector, expected, atol=1e-6, rtol=1e-6)
        model = PeftModel.from_pretrained(load(pico_folder), tmp_path / "out/artifact")
        assert (logits(model) - logits(load(pico_folder))).abs().max() > 1e-3

    def test_a_prefix_goes_head_by_head_with_the_heads_of_keys(self, tmp_path: Path, pico_folder: Path) -> None:
        """The model has 4 heads and 2 of keys and values; the release counts 4."""
        fields: dict[str, Any] = {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 8}
        adapters = [adapter(tmp_path / n, pico_folder, i, PrefixTuningConfig, **fields) for i, n in enumerate("ea")]
        merge_adapters(ExtSub(alpha=1), models=adapters, out=tmp_path / "out")
        plus, minus, found = (
            load_file(f / "adapter_model.safetensors")["prompt_embeddings"].reshape(-1, 8)
            for f in (*adapters, tmp_path / "out/artifact")
        )
        torch.testing.assert_close(found, literal_ext_sub(plus, minus, 1), atol=1e-6, rtol=1e-5)
        model = PeftModel.from_pretrained(load(pico_folder), tmp_path / "out/artifact")
        assert torch.isfinite(logits(model)).all()

    def test_other_numbers_of_virtual_tokens_do_not_fit(self, tmp_path: Path, pico_folder: Path) -> None:
        folders = [
            adapter(tmp_path / n, pico_folder, i, PrefixTuningConfig, num_virtual_tokens=2 + i) for i, n in enumerate("ea")
        ]
        with pytest.raises(ExpungeError, match=r"prompt_embeddings is \(2, 64\) in .* and \(3, 64\)"):
            merge_adapters(ExtSub(), models=folders, out=tmp_path / "out")


class TestWarnings:
    def test_parallel_adapters(self, tmp_path: Path, pico_folder: Path) -> None:
        folder = adapter(tmp_path / "e", pico_folder, 1)
        with pytest.warns(UserWarning, match="nearly parallel"):
            result = merge_adapters(ExtSub(), models=[folder, folder], out=tmp_path / "out")
        assert result.cosine == pytest.approx(1)
        plus, found = changes(folder, pico_folder), changes(tmp_path / "out/artifact", pico_folder)
        assert all(torch.allclose(found[n], t, atol=1e-6) for n, t in plus.items())

    def test_orthogonal_adapters(self, tmp_path: Path, pico_folder: Path) -> None:
        folders = [
            adapter(tmp_path / n, pico_folder, i, target_modules=[t])
            for i, (n, t) in enumerate((("e", "q_proj"), ("a", "v_proj")))
        ]
        with pytest.warns(UserWarning, match="nearly orthogonal") as caught:
            result = merge_adapters(ExtSub(), models=folders, out=tmp_path / "out")
        assert result.cosine == 0
        assert any("32 of 96 rows are changed by the anti-expert alone" in str(w.message) for w in caught)

    def test_a_tokenizer_larger_than_the_embedding_pads_with_the_end_token(self, tmp_path: Path, pico_folder: Path) -> None:
        folders = [adapter(tmp_path / n, pico_folder, i) for i, n in enumerate("ea")]
        tokenizer = AutoTokenizer.from_pretrained(pico_folder)
        tokenizer.add_special_tokens({"pad_token": "[EXTRA PAD]"})
        tokenizer.save_pretrained(folders[0])
        with pytest.warns(UserWarning, match=r"\[EXTRA PAD\] is replaced by </s> for padding"):
            merge_adapters(ExtSub(), models=folders, out=tmp_path / "out")
        read = AutoTokenizer.from_pretrained(tmp_path / "out/artifact")
        assert read.pad_token == "</s>"
        assert expunge.verify(tmp_path / "out")


class TestBases:
    def named(self, folder: Path, base: str) -> Path:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
        return folder

    def test_without_the_base_the_result_is_the_same_and_says_that_its_hash_is_unknown(
        self, tmp_path: Path, pico_folder: Path
    ) -> None:
        adapters = [adapter(tmp_path / n, pico_folder, i) for i, n in enumerate("ea")]
        merge_adapters(ExtSub(), models=adapters, out=tmp_path / "here")
        for folder in adapters:
            self.named(folder, "somebody/elsewhere-7b")
        result = merge_adapters(ExtSub(), models=adapters, out=tmp_path / "out")
        assert "somebody/elsewhere-7b is not on this machine" in result.sentences()
        config = json.loads((tmp_path / "out/artifact/adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "somebody/elsewhere-7b"
        one, two = (load_file(tmp_path / n / "artifact/adapter_model.safetensors") for n in ("here", "out"))
        assert all(torch.equal(one[key], two[key]) for key in one)

    def test_it_loads_when_the_base_is_there_later(
        self, tmp_path: Path, pico_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapters = [self.named(adapter(tmp_path / n, pico_folder, i), "later") for i, n in enumerate("ea")]
        merge_adapters(ExtSub(), models=adapters, out=tmp_path / "out")
        (tmp_path / "later").symlink_to(pico_folder)
        monkeypatch.chdir(tmp_path)
        with pytest.warns(UserWarning, match="later is not checked"):
            model, tokenizer = expunge.load("out")
        assert (logits(model) - logits(load(pico_folder))).abs().max() > 1e-3
        assert tokenizer.eos_token == "</s>"

    def test_two_bases_are_refused_and_a_common_one_may_be_given(self, tmp_path: Path, pico_folder: Path) -> None:
        expert = adapter(tmp_path / "e", pico_folder, 1)
        anti = self.named(adapter(tmp_path / "a", pico_folder, 2), "other/model")
        with pytest.raises(ExpungeError, match=r"is an adapter of .* and .* of other/model; train both on one base, or"):
            merge_adapters(ExtSub(), models=[expert, anti], out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
        merge_adapters(ExtSub(), models=[expert, anti], out=tmp_path / "out", base=pico_folder)
        assert (logits(expunge.load(tmp_path / "out")[0]) - logits(load(pico_folder))).abs().max() > 1e-3

    def test_two_folders_of_one_content_are_one_base(self, tmp_path: Path, pico_folder: Path) -> None:
        import shutil

        shutil.copytree(pico_folder, tmp_path / "copy")
        models = [adapter(tmp_path / "e", pico_folder, 1), adapter(tmp_path / "a", tmp_path / "copy", 2)]
        merge_adapters(ExtSub(), models=models, out=tmp_path / "out")
        with torch.no_grad():
            changed = load(pico_folder)
            changed.lm_head.weight.add_(1)
            changed.save_pretrained(tmp_path / "copy")
        with pytest.raises(ExpungeError, match="train both on one base"):
            merge_adapters(ExtSub(), models=models, out=tmp_path / "out2")


class TestRefusals:
    def test_modules_that_do_not_fit(self, tmp_path: Path, pico_folder: Path) -> None:
        from tests.conftest import make_llama

        make_llama(width=64).save_pretrained(tmp_path / "wide")
        expert, anti = adapter(tmp_path / "e", pico_folder, 1), adapter(tmp_path / "a", tmp_path / "wide", 2)
        with pytest.raises(ExpungeError, match=r"q_proj is 32x32 in .*/e and 64x64 in .*/a; both"):
            merge_adapters(ExtSub(), models=[expert, anti], out=tmp_path / "out", base=pico_folder)
        assert not list(tmp_path.glob("*out*"))

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"use_dora": True}, "use_dora"),
            ({"peft_type": "P_TUNING"}, "type P_TUNING; LORA, IA3 and PREFIX_TUNING"),
            ({"peft_type": "IA3"}, "is no part of an adapter of type IA3"),
            ({"init_lora_weights": "pissa"}, "changed its base"),
            ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ],
    )
    def test_adapters_that_are_no_plain_product(
        self, fields: dict[str, Any], words: str, tmp_path: Path, pico_folder: Path
    ) -> None:
        folder = adapter(tmp_path / "e", pico_folder, 1)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
        with pytest.raises(ExpungeError, match=words):
            merge_adapters(ExtSub(), models=[folder, folder], out=tmp_path / "out")

    def test_weights_trained_whole_and_kinds_that_differ(self, tmp_path: Path, pico_folder: Path) -> None:
        expert = adapter(tmp_path / "e", pico_folder, 1, modules_to_save=["lm_head"])
        with pytest.raises(ExpungeError, match="trained whole are merged with a base"):
            merge_adapters(ExtSub(), models=[expert, expert], out=tmp_path / "out")
        ia3 = adapter(tmp_path / "i", pico_folder, 1, IA3Config, target_modules=["k_proj"], feedforward_modules=[])
        lora = adapter(tmp_path / "l", pico_folder, 1)
        with pytest.raises(ExpungeError, match=r"of type LORA and .* of type IA3"):
            merge_adapters(ExtSub(), models=[lora, ia3], out=tmp_path / "out")
        with pytest.raises(ExpungeError, match="takes two adapters"):
            merge_adapters(ExtSub(), models=[lora], out=tmp_path / "out")
        with pytest.raises(ExpungeError, match="only LoRA has those"):
            merge_adapters(Ethos(), models=[ia3, ia3], out=tmp_path / "out", base=pico_folder)

    def test_an_adapter_with_a_broken_number(self, tmp_path: Path, pico_folder: Path) -> None:
        expert = adapter(tmp_path / "e", pico_folder, 1)
        factors = load_file(expert / "adapter_model.safetensors")
        next(iter(factors.values()))[0, 0] = float("nan")
        save_file(factors, expert / "adapter_model.safetensors")
        with pytest.raises(ExpungeError, match="holds nan at element 0"):
            merge_adapters(ExtSub(), models=[expert, expert], out=tmp_path / "out")


def test_the_command(tmp_path: Path, pico_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapters = [str(adapter(tmp_path / n, pico_folder, i)) for i, n in enumerate("ea")]
    main(["merge", "ext_sub", "--models", *adapters, "--alpha", "0.5", "--out", str(tmp_path / "out")])
    assert "4 modules, rank 8" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/artifact/expunge.json").read_text())["method"] == {
        "name": "ext_sub", "alpha": 0.5, "zero_expert": "drop"
    }  # fmt: skip


def test_a_file_of_pairs_is_merged_into_a_folder_each_and_goes_on(
    tmp_path: Path, pico_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    e, a, b = (str(adapter(tmp_path / n, pico_folder, i)) for i, n in enumerate("eab"))
    file = tmp_path / "pairs.yaml"
    file.write_text(json.dumps({"merges": {"first": [e, a], "second": [e, b]}}))
    words = ["merge", "ext_sub", "--config", str(file), "--alpha", "0.5", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    merge_adapters(ExtSub(alpha=0.5), models=[e, b], out=tmp_path / "one")
    there = tmp_path / "out/second/artifact/adapter_model.safetensors"
    assert there.read_bytes() == (tmp_path / "one/artifact/adapter_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "out/second")
    capsys.readouterr()
    assert main(words) == 0
    assert "first: " in (said := capsys.readouterr().out)
    assert "is there already" in said
    assert there.is_file()
    before = there.read_bytes()
    assert main([*words[:5], "1.0", *words[6:]]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert there.read_bytes() == before
    for wrong in ({"merges": {"first": [e]}}, {"merges": {"../first": [e, a]}}, {"merges": {}}, {"models": [e, a]}):
        file.write_text(json.dumps(wrong))
        assert main(words) == 2


def test_a_killed_merge_of_adapters_is_repeated_by_its_folder_alone(
    tmp_path: Path, pico_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = [str(adapter(tmp_path / n, pico_folder, i)) for i, n in enumerate("ea")]
    out = tmp_path / "out"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(factor_merge, "save_artifact", killed)
        assert main(["merge", "ext_sub", "--models", *adapters, "--alpha", "0.5", "--out", str(out)]) == 130
    advice = f"go on with: expunge merge --resume --out {out}"
    assert advice in capsys.readouterr().err
    assert main(["merge", "ext_sub", "--models", *adapters, "--out", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["merge", "--resume", "--out", str(out)]) == 0
    assert json.loads((out / "artifact/expunge.json").read_text())["method"]["alpha"] == 0.5
    assert sorted(file.name for file in out.iterdir()) == ["artifact", "merge.json", "modules.jsonl"]


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path, pico_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = [adapter(tmp_path / n, pico_folder, i) for i, n in enumerate("ea")]

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(ExpungeError, match="No space left on device"):
        merge_adapters(AdapterAddition(), models=two, out=tmp_path / "new/out", command=["adapter_addition"])
    assert not (tmp_path / "new").exists()
