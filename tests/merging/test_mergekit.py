"""mergekit's YAML, and mergekit itself as the judge of the numbers where it is installed."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from expunge.errors import ExpungeError
from expunge.merging import execute
from expunge.merging.mergekit import read_mergekit
from expunge.methods.editing import Breadcrumbs, Linear, Slerp, TaskArithmetic, Ties

from .conftest import read_weights


@pytest.fixture
def folders(tmp_path: Path, pico_llama: nn.Module) -> Path:
    """base, m0, m1, m2: float32, four layers' worth of names would be too many, two do."""
    pico_llama.save_pretrained(tmp_path / "base")
    start = {n: p.detach().clone() for n, p in pico_llama.named_parameters()}
    for i in range(3):
        generator = torch.Generator().manual_seed(i + 1)
        with torch.no_grad():
            for n, p in pico_llama.named_parameters():
                p.copy_(start[n] + 0.02 * torch.randn(p.shape, generator=generator))
        pico_llama.save_pretrained(tmp_path / f"m{i}")
    return tmp_path


def recipe(folder: Path, text: str) -> Path:
    """A YAML file in which names of models stand for their folders."""
    value = yaml.safe_load(text)

    def placed(part: Any) -> Any:
        if isinstance(part, dict):
            return {k: str(folder / v) if k in ("model", "base_model") else placed(v) for k, v in part.items()}
        return [placed(p) for p in part] if isinstance(part, list) else part

    (folder / "recipe.yml").write_text(yaml.safe_dump(placed(value)))
    return folder / "recipe.yml"


TIES = """
merge_method: ties
base_model: base
dtype: float32
parameters: {normalize: true, lambda: 0.7}
models:
  - model: base
  - {model: m0, parameters: {weight: 1.0, density: 0.5}}
  - {model: m1, parameters: {weight: 0.5, density: [0.2, 0.4]}}
  - {model: m2, parameters: {weight: [{filter: mlp, value: 2.0}, {value: 1.0}], density: 0.3}}
"""
SLERP = """
merge_method: slerp
base_model: base
dtype: float32
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - {model: m0, layer_range: [0, 2]}
parameters:
  t: [{filter: self_attn, value: [0, 1]}, {filter: mlp, value: [1, 0.5]}, {value: 0.5}]
"""
LINEAR = """
merge_method: linear
dtype: float32
models:
  - {model: m0, parameters: {weight: 0.2}}
  - {model: m1, parameters: {weight: [1, 0]}}
"""
TASK = """
merge_method: task_arithmetic
base_model: base
dtype: float32
parameters: {lambda: 1.5, int8_mask: true}
models:
  - {model: m0, parameters: {weight: -1.0}}
  - {model: m1, parameters: {weight: 0.3}}
"""
CRUMBS = """
merge_method: breadcrumbs
base_model: base
dtype: float32
parameters: {gamma: 0.05, density: 0.4}
models:
  - {model: m0, parameters: {weight: 1.0}}
  - {model: m2, parameters: {weight: 0.3, density: 0.98}}
"""


class TestReading:
    def test_filters_gradients_and_levels_follow_mergekit(self, folders: Path) -> None:
        request = read_mergekit(recipe(folders, TIES), shard_bytes=10**9)
        assert request.models == tuple(str(folders / f"m{i}") for i in range(3))
        first = request.method_of("model.layers.0.mlp.up_proj.weight")
        last = request.method_of("model.layers.1.self_attn.q_proj.weight")
        outside = request.method_of("lm_head.weight")
        assert first == Ties(density=(0.5, 0.2, 0.3), weights=(1, 0.5, 2), scale=0.7, scope="per_tensor", tie_policy="exact")
        assert isinstance(last, Ties)
        assert isinstance(outside, Ties)
        assert (last.density, last.weights) == ((0.5, 0.4, 0.3), (1, 0.5, 1))
        assert (outside.density, outside.weights) == ((0.5, 0.2, 0.3), (1, 0.5, 1))

    def test_a_slice_of_all_layers_is_a_merge_of_models(self, folders: Path) -> None:
        request = read_mergekit(recipe(folders, SLERP), shard_bytes=10**9)
        assert request.models == (str(folders / "m0"),)
        names = ("model.layers.1.self_attn.k_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight")
        assert [request.method_of(n) for n in names] == [Slerp(t=1), Slerp(t=0.5), Slerp(t=0.5)]

    def test_every_method_is_read(self, folders: Path) -> None:
        found = [read_mergekit(recipe(folders, text), shard_bytes=1).method for text in (LINEAR, TASK, CRUMBS)]
        assert found == [
            Linear(weights=(0.2, 1)),
            TaskArithmetic(weights=(-1, 0.3), scale=1.5),
            Breadcrumbs(density=(0.4, 0.98), gamma=0.05, tie_policy="exact", weights=(1, 0.3)),
        ]
        for name in ("dare_linear", "dare_ties"):
            method = read_mergekit(recipe(folders, TIES.replace("ties", name)), shard_bytes=1).method
            assert (method.method_name(), method.model_dump()["rescale"]) == (name, True)

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ("merge_method: ties", "merge_method: tiess", "'tiess' is not supported.*did you mean 'ties'"),
            ("merge_method: ties", "merge_method: della", "'della' is not supported"),
            ("dtype: float32", "dtipe: float32", "'dtipe' is not a field"),
            ("dtype: float32", "tokenizer_source: union", "keeps the tokenizer of the base"),
            ("dtype: float32", "chat_template: auto", "chat_template is not supported"),
            ("normalize: true", "normalise: true", "has no parameter 'normalise'.*'normalize'"),
            ("normalize: true", "rescale: true", "rescale is not supported"),
            ("density: 0.5", "density: 1.5", "a density is the share"),
            ("weight: 1.0, ", "", "weight is missing"),
            ("weight: 1.0, ", "weight: much, ", "weight is 'much', which is no number"),
            ("weight: 1.0, ", "weight: [1.0, much], ", "which is no number and no list"),
            ("weight: 1.0, ", 'weight: [{filter: "*"}], ', "which is no number and no list"),
            ("base_model: base", "", "needs base_model"),
        ],
    )
    def test_what_is_not_offered_is_named(self, old: str, new: str, words: str, folders: Path) -> None:
        with pytest.raises(ExpungeError, match=words):
            read_mergekit(recipe(folders, TIES.replace(old, new)), shard_bytes=1)

    def test_slices_that_move_layers_are_refused(self, folders: Path) -> None:
        with pytest.raises(ExpungeError, match="only slices of all layers"):
            read_mergekit(recipe(folders, SLERP.replace("[0, 2]", "[0, 1]")), shard_bytes=1)

    def test_an_adapter_on_another_base_is_refused(self, folders: Path) -> None:
        text = TIES.replace("{model: m0,", "{model: m1+m0,")
        with pytest.raises(ExpungeError, match="puts an adapter on another model"):
            read_mergekit(recipe(folders, text), shard_bytes=1)


def by_mergekit(file: Path, out: Path) -> dict[str, torch.Tensor]:
    pytest.importorskip("mergekit", reason="mergekit is not installed (extra `dev`): nothing to compare with")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
    run_merge(config, str(out), options=MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False))
    return read_weights(out)


@pytest.mark.parametrize(
    "text", [TIES, SLERP, LINEAR, TASK, CRUMBS], ids=["ties", "slerp", "linear", "task_arithmetic", "breadcrumbs"]
)
def test_the_numbers_are_those_of_mergekit(text: str, folders: Path) -> None:
    file = recipe(folders, text)
    expected = by_mergekit(file, folders / "theirs")
    execute(read_mergekit(file, shard_bytes=10**9), folders / "ours", quiet=True)
    found = read_weights(folders / "ours/artifact")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        if "ties" in text:
            assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
        else:
            assert torch.allclose(found[name], tensor, atol=1e-6, rtol=1e-6), name
    base = read_weights(folders / "base")
    assert any(not torch.allclose(base[n], t, atol=1e-3) for n, t in expected.items())


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.75])
def test_ties_per_tensor_and_exact_gives_equal_bytes(count: int, density: float, folders: Path) -> None:
    models = "".join(f"\n  - {{model: m{i}, parameters: {{weight: 1.0, density: {density}}}}}" for i in range(count))
    file = recipe(folders, f"merge_method: ties\nbase_model: base\ndtype: float32\nmodels:{models}\n")
    expected = by_mergekit(file, folders / "theirs")
    execute(read_mergekit(file, shard_bytes=10**9), folders / "ours", quiet=True)
    found = read_weights(folders / "ours/artifact")
    assert all(torch.equal(found[n].view(torch.uint8), t.view(torch.uint8)) for n, t in expected.items())


@pytest.mark.parametrize("models", [2, 3])
def test_dare_ties_takes_the_positive_entries_where_sums_cancel_as_mergekit_does(models: int, folders: Path) -> None:
    """Differences on a coarse grid cancel often; at density 1 there are no coins, and the numbers are equal."""
    base = read_weights(folders / "base")
    on_grid = {n: (t * 64).round() / 64 for n, t in base.items()}
    save_file(on_grid, folders / "base/model.safetensors", metadata={"format": "pt"})
    steps: list[dict[str, torch.Tensor]] = []
    for i in range(models):
        generator = torch.Generator().manual_seed(i)
        steps.append({n: torch.randint(-2, 3, t.shape, generator=generator) / 64 for n, t in on_grid.items()})
        moved = {n: t + steps[i][n] for n, t in on_grid.items()}
        save_file(moved, folders / f"m{i}/model.safetensors", metadata={"format": "pt"})
    listed = "".join(f"\n  - {{model: m{i}, parameters: {{weight: 1.0, density: 1.0}}}}" for i in range(models))
    file = recipe(folders, f"merge_method: dare_ties\nbase_model: base\ndtype: float32\nmodels:{listed}\n")
    expected = by_mergekit(file, folders / "theirs")
    execute(read_mergekit(file, shard_bytes=10**9), folders / "ours", quiet=True)
    found = read_weights(folders / "ours/artifact")
    cancelled = sum(int(((sum(s[n] for s in steps) == 0) & (steps[0][n] != 0)).sum()) for n in on_grid)
    assert cancelled > 500
    assert all(torch.equal(found[n], t) for n, t in expected.items())


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_keeps_the_same_share_of_the_same_differences(name: str, folders: Path) -> None:
    """The coins are others, so one model is compared: each entry is the base's or the model's, in the asked share."""
    file = recipe(
        folders,
        f"merge_method: {name}\nbase_model: base\ndtype: float32\nparameters: {{rescale: false}}\n"
        "models:\n  - {model: m0, parameters: {weight: 1.0, density: 0.4}}\n",
    )
    base, model = read_weights(folders / "base"), read_weights(folders / "m0")
    execute(read_mergekit(file, shard_bytes=10**9), folders / "ours", quiet=True)
    for merged in (by_mergekit(file, folders / "theirs"), read_weights(folders / "ours/artifact")):
        kept = entries = 0
        for n, tensor in merged.items():
            there, moved = (torch.isclose(tensor, t, rtol=0, atol=1e-6) for t in (base[n], model[n]))
            assert (there | moved).all(), n
            kept, entries = kept + int((moved & (base[n] != model[n])).sum()), entries + int((base[n] != model[n]).sum())
        assert abs(kept / entries - 0.4) < 5 * (0.4 * 0.6 / entries) ** 0.5


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_rescales_by_the_density_of_which_mergekit_s_factor_is_an_estimate(name: str, folders: Path) -> None:
    """mergekit gives each tensor its sum of magnitudes back, so that its factor is 1 / density but for chance."""
    file = recipe(
        folders,
        f"merge_method: {name}\nbase_model: base\ndtype: float32\n"
        "models:\n  - {model: m0, parameters: {weight: 1.0, density: 0.5}}\n",
    )
    base, model = read_weights(folders / "base"), read_weights(folders / "m0")
    execute(read_mergekit(file, shard_bytes=10**9), folders / "ours", quiet=True)
    name = "lm_head.weight"
    for merged, chance in ((by_mergekit(file, folders / "theirs"), 0.1), (read_weights(folders / "ours/artifact"), 1e-3)):
        difference, whole = merged[name] - base[name], model[name] - base[name]
        large = (difference != 0) & (whole.abs() > 0.01)  # a quotient of small ones would be rounding
        factors = (difference / whole)[large]
        assert large.sum() > 100
        assert factors.std() < 1e-3
        assert abs(float(factors.mean()) - 2) < 2 * chance


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("merge_method: ties\nbase_model: base\nmodels:\n  - {model: m0, weight: 1.0}\n", "weight"),
        (
            "merge_method: ties\nbase_model: base\nslices:\n  - base_model: m1\n    sources:\n"
            "      - {model: m0, layer_range: [0, 2], parameters: {weight: 1.0}}\n",
            "base_model",
        ),
    ],
)
def test_a_setting_at_a_place_where_it_has_no_effect_is_refused(text: str, field: str, folders: Path) -> None:
    with pytest.raises(ExpungeError, match=f"'{field}' beside .* is not read"):
        read_mergekit(recipe(folders, text), shard_bytes=10**9)


def test_a_flag_in_quotation_marks_is_the_flag(folders: Path) -> None:
    given = "merge_method: ties\nbase_model: base\nparameters: {normalize: 'false'}\n"
    given += "models:\n  - {model: m0, parameters: {weight: 2}}\n"
    method = read_mergekit(recipe(folders, given), shard_bytes=10**9).method
    assert isinstance(method, Ties)
    assert method.normalize is False
