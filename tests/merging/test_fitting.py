"""Models that do not fit together are refused with the tensors by name, before anything is written."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.errors import ExpungeError
from expunge.merging import merge
from expunge.methods.editing import Linear, TaskArithmetic, Ties

from .conftest import moved, random_tensors, read_weights, write_folder


def attempt(tmp_path: Path, base: dict[str, torch.Tensor], model: dict[str, torch.Tensor], **flags: Any) -> Path:
    config = flags.pop("config", {})
    write_folder(tmp_path / "base", base, **config)
    write_folder(tmp_path / "m", model, **config)
    before = sorted(tmp_path.rglob("*"))
    try:
        merge(TaskArithmetic(), base=tmp_path / "base", models=[tmp_path / "m"], out=tmp_path / "out", quiet=True, **flags)
    except ExpungeError:
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        raise
    return tmp_path / "out/artifact"


def without(tensors: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tensors.items() if n not in names}


class TestNamesAndShapes:
    def test_missing_tensors(self, tmp_path: Path) -> None:
        base = random_tensors(0)
        with pytest.raises(ExpungeError, match=r"/m lacks model.layers.0.norm.weight of the base"):
            attempt(tmp_path, base, without(base, "model.layers.0.norm.weight"))

    def test_extra_tensors_with_the_nearest_name(self, tmp_path: Path) -> None:
        base = random_tensors(0)
        with pytest.raises(
            ExpungeError, match=r"has model.layers.0.norm.weights, .* \(did you mean 'model.layers.0.norm.weight'"
        ):
            attempt(tmp_path, base, base | {"model.layers.0.norm.weights": torch.zeros(8)})

    def test_other_shapes(self, tmp_path: Path) -> None:
        base = random_tensors(0)
        other = base | {f"model.layers.{i}.mlp.down_proj.weight": torch.zeros(8, 24) for i in (0, 1)}
        with pytest.raises(ExpungeError, match=r"layers.0.mlp.down_proj.weight is 8x24 instead of 8x23, model.layers.1"):
            attempt(tmp_path, base, other)

    def test_whole_numbers_instead_of_weights(self, tmp_path: Path) -> None:
        base = random_tensors(0)
        with pytest.raises(ExpungeError, match=r"model.layers.0.norm.weight is I8 instead of F32"):
            attempt(tmp_path, base, base | {"model.layers.0.norm.weight": torch.zeros(8, dtype=torch.int8)})

    def test_quantized_models(self, tmp_path: Path) -> None:
        base = random_tensors(0)
        with pytest.raises(ExpungeError, match="is quantized"):
            attempt(tmp_path, base, base, config={"quantization_config": {"bits": 4}})

    def test_models_of_other_dtypes_are_merged(self, tmp_path: Path) -> None:
        base = random_tensors(0, dtype=torch.bfloat16)
        model = {n: t.float() + 0.25 for n, t in base.items()}
        found = read_weights(attempt(tmp_path, base, model))
        assert all(torch.equal(found[n], (t.float() + 0.25).bfloat16()) for n, t in base.items())


class TestNumbers:
    def test_nan_in_a_model_is_named_and_leaves_no_output(self, tmp_path: Path) -> None:
        base = random_tensors(0)
        model = moved(base, 1)
        model["lm_head.weight"][3, 4] = float("nan")
        with pytest.raises(ExpungeError, match=r"/m: lm_head.weight holds nan at element 28"):
            attempt(tmp_path, base, model)

    def test_inf_in_a_tensor_that_is_only_copied(self, tmp_path: Path) -> None:
        base = random_tensors(0)
        base["lm_head.weight"][0, 1] = float("-inf")
        with pytest.raises(ExpungeError, match=r"/base: lm_head.weight holds -inf at element 1"):
            attempt(tmp_path, base, moved(base, 1, ["model.layers.0.norm.weight"]))

    def test_a_result_beyond_the_asked_dtype(self, tmp_path: Path) -> None:
        base = random_tensors(0)
        base["lm_head.weight"][0, 1] = 1e6
        with pytest.raises(ExpungeError, match=r"lm_head.weight leaves the range of F16"):
            attempt(tmp_path, base, moved(base, 1), dtype="float16")


class TestVocabulary:
    def grown(self, rows: int) -> dict[str, torch.Tensor]:
        model = moved(random_tensors(0), 1)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            model[name] = torch.cat([model[name], torch.ones(5, 8)])[:rows]
        return model

    def test_another_number_of_tokens_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ExpungeError, match=r"lm_head.weight has 40 rows in .* and 37 in the base.*--vocabulary base"):
            attempt(tmp_path, random_tensors(0), self.grown(40))

    @pytest.mark.parametrize("rows", [30, 40])
    def test_the_base_policy_merges_common_rows(self, tmp_path: Path, rows: int) -> None:
        base, model = random_tensors(0), self.grown(rows)
        found = read_weights(attempt(tmp_path, base, model, vocabulary="base"))
        common = min(rows, 37)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert found[name].shape == (37, 8)
            assert torch.allclose(found[name][:common], model[name][:common], atol=1e-6)
            assert torch.equal(found[name][common:], base[name][common:])

    def test_linear_takes_missing_rows_from_the_base(self, tmp_path: Path) -> None:
        base, model = random_tensors(0), self.grown(30)
        write_folder(tmp_path / "base", base)
        write_folder(tmp_path / "m", model)
        merge(Linear(), base=tmp_path / "base", models=[tmp_path / "m"], out=tmp_path / "out", vocabulary="base", quiet=True)
        assert torch.equal(read_weights(tmp_path / "out/artifact")["lm_head.weight"][30:], base["lm_head.weight"][30:])


class TestTiedWeights:
    TIED = {"tie_word_embeddings": True}  # noqa: RUF012

    def copies(self, seed: int) -> dict[str, torch.Tensor]:
        tensors = moved(random_tensors(0), seed)
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    def test_two_copies_are_merged_and_stored_once(self, tmp_path: Path) -> None:
        base, model = self.copies(1), self.copies(2)
        found = read_weights(attempt(tmp_path, base, model, config=self.TIED))
        assert set(found) == set(base) - {"lm_head.weight"}
        assert torch.allclose(found["model.embed_tokens.weight"], model["model.embed_tokens.weight"], atol=1e-6)

    def test_it_does_not_matter_which_model_stores_the_copy(self, tmp_path: Path) -> None:
        base, model = self.copies(1), self.copies(2)
        both = read_weights(attempt(tmp_path / "0", base, model, config=self.TIED))
        for i, (a, b) in enumerate([(without(base, "lm_head.weight"), model), (base, without(model, "lm_head.weight"))]):
            found = read_weights(attempt(tmp_path / f"{i + 1}", a, b, config=self.TIED))
            assert {n: t.tolist() for n, t in found.items()} == {n: t.tolist() for n, t in both.items()}

    def test_a_head_that_was_untied_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ExpungeError, match=r"has a lm_head.weight of its own"):
            attempt(tmp_path, self.copies(1), moved(self.copies(1), 5), config=self.TIED)

    def test_without_the_flag_equal_tensors_are_two(self, tmp_path: Path) -> None:
        assert "lm_head.weight" in read_weights(attempt(tmp_path, self.copies(1), self.copies(2)))


class TestPlaces:
    def test_a_disk_that_is_too_small_is_found_before_the_first_byte(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 500, 500))
        with pytest.raises(ExpungeError, match=r"takes 3\d\.\d kB and .* has 500 bytes free"):
            attempt(tmp_path, random_tensors(0), moved(random_tensors(0), 1))

    def test_an_existing_output_stays(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine").write_text("x")
        with pytest.raises(ExpungeError, match="exists already"):
            attempt(tmp_path, random_tensors(0), moved(random_tensors(0), 1))
        with pytest.raises(ExpungeError, match="was not made by expunge"):
            attempt(tmp_path, random_tensors(0), moved(random_tensors(0), 1), overwrite=True)
        assert (tmp_path / "out/mine").read_text() == "x"

    def test_the_result_of_an_earlier_merge_is_replaced(self, tmp_path: Path) -> None:
        out = attempt(tmp_path, random_tensors(0), moved(random_tensors(0), 1))
        first = (out / "model.safetensors").read_bytes()
        attempt(tmp_path, random_tensors(0), moved(random_tensors(0), 2), overwrite=True)
        assert (out / "model.safetensors").read_bytes() != first

    @pytest.mark.parametrize("path", ["./nothing", "/nowhere/at/all"])
    def test_a_model_that_is_not_there(self, tmp_path: Path, path: str) -> None:
        write_folder(tmp_path / "base", random_tensors(0))
        with pytest.raises(ExpungeError, match="there is no model"):
            merge(Ties(), base=tmp_path / "base", models=[path], out=tmp_path / "out")

    def test_no_models(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "base", random_tensors(0))
        with pytest.raises(ExpungeError, match="nothing to merge"):
            merge(Ties(), base=tmp_path / "base", models=[], out=tmp_path / "out")
