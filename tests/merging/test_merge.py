"""The streamed merge against the dense one: every method, any number of shards, pieces and threads."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import expunge.artifact
import expunge.loading
from expunge.merging import merge, positions, thresholds
from expunge.methods.editing import Breadcrumbs, DareLinear, DareTies, Linear, Slerp, TaskArithmetic, Ties
from expunge.methods.editing.base import EditingMethod

from .conftest import dense, file_bytes, moved, random_tensors, read_weights, write_folder

METHODS: list[EditingMethod] = [
    Linear(weights=(1, 2, -0.5)),
    Linear(weights=(1, 2, 1), normalize=False),
    TaskArithmetic(scale=-0.5),
    Ties(),
    Ties(scope="global_changed", density=(0.1, 0.3, 1.0), weights=(1, 2, 3)),
    Ties(scope="per_tensor", tie_policy="exact", sign="count"),
    Ties(tie_policy="exact", scale=-1, normalize=False, weights=(-1, 1, 2)),
    DareLinear(density=0.5, seed=3),
    DareTies(density=(0.2, 0.5, 0.9)),
    Breadcrumbs(density=0.3, gamma=0.1),
    Breadcrumbs(density=0.3, gamma=0.2, tie_policy="exact"),
]


def label(method: EditingMethod) -> str:
    return method.method_name() + "".join(f"-{v}" for v in method.model_dump(exclude_defaults=True).values())


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_streamed_equals_dense_whatever_the_pieces_shards_and_threads(
    method: EditingMethod, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = random_tensors(0, dtype=dtype)
    models = [
        moved(base, 1),
        moved(base, 2, ["lm_head.weight", "model.layers.0.norm.weight"]),
        moved(base, 3, ["lm_head.weight"]),
    ]
    expected = dense(method, base, models)
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "sharded", base, shards=3)
    paths = [write_folder(tmp_path / f"m{i}", m, shards=i + 1) for i, m in enumerate(models)]
    seen = []
    for i, (piece, small, start, threads, shard_bytes) in enumerate(
        [(2**18, 2**20, "base", 1, 10**9), (64, 2**20, "sharded", 3, 1500), (40, 0, "base", 2, 10**9)]
    ):
        monkeypatch.setattr(positions, "PIECE", piece)
        monkeypatch.setattr(thresholds, "PIECE", piece)
        monkeypatch.setattr(thresholds, "SMALL", small)
        out = tmp_path / f"out{i}"
        merge(method, base=tmp_path / start, models=paths, out=out, threads=threads, shard_bytes=shard_bytes, quiet=True)
        seen.append(read_weights(out / "artifact"))
    for found in seen:
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_slerp_equals_the_formula(tmp_path: Path, three: tuple[Path, list[Path]]) -> None:
    base, models = three
    merge(Slerp(t=0.3), base=base, models=models[:1], out=tmp_path / "out", quiet=True)
    expected = dense(Slerp(t=0.3), read_weights(base), [read_weights(models[0])])
    found = read_weights(tmp_path / "out/artifact")
    assert all(torch.allclose(found[n], t, atol=1e-6) for n, t in expected.items())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    density=st.floats(0.02, 1.0),
    scope=st.sampled_from(["global", "global_changed", "per_tensor"]),
    policy=st.sampled_from(["keep", "exact"]),
    piece=st.sampled_from([32, 64, 2**18]),
    small=st.sampled_from([0, 2**20]),
)
def test_ties_on_coarse_numbers_equals_the_dense_one(
    seed: int, density: float, scope: str, policy: str, piece: int, small: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rounded numbers, so that many entries tie at the cut."""
    folder = tmp_path_factory.mktemp("coarse")
    base = {n: (4 * t).round() / 4 for n, t in random_tensors(seed).items()}
    models = [
        {n: (8 * t).round() / 8 for n, t in moved(base, seed + i, None if i else ["lm_head.weight"]).items()} for i in range(3)
    ]
    method = Ties(density=density, scope=scope, tie_policy=policy)
    paths = [write_folder(folder / f"m{i}", m) for i, m in enumerate(models)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(positions, "PIECE", piece)
        patch.setattr(thresholds, "PIECE", piece)
        patch.setattr(thresholds, "SMALL", small)
        result = merge(method, base=write_folder(folder / "base", base), models=paths, out=folder / "out", threads=2, quiet=True)
    found = read_weights(folder / "out/artifact")
    for name, tensor in dense(method, base, models).items():
        assert torch.equal(found[name], tensor), name
    if policy == "exact" and scope == "global":
        entries, changed = result.elements, [sum(int((m[n] != base[n]).sum()) for n in base) for m in models]
        assert result.kept == tuple(min(max(1, int(density * entries)), c) for c in changed)


def test_what_rmu_changes_is_not_trimmed_globally_and_the_result_says_so(tmp_path: Path) -> None:
    base = random_tensors(0)
    name = "model.layers.1.mlp.down_proj.weight"
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "m", moved(base, 1, [name]))
    result = merge(Ties(density=0.5), base=tmp_path / "base", models=[tmp_path / "m"], out=tmp_path / "out", quiet=True)
    assert result.kept == (8 * 23,)
    assert (result.merged, result.copied) == (1, 4)
    assert "100 % of those (nothing but zeros was trimmed)" in result.sentences()
    result = merge(
        Ties(density=0.5, scope="global_changed"),
        base=tmp_path / "base",
        models=[tmp_path / "m"],
        out=tmp_path / "o2",
        quiet=True,
    )
    assert result.kept == (8 * 23 // 2,)
    assert "50 % of those" in result.sentences()


def test_tensors_that_no_model_changes_are_copied_byte_for_byte(tmp_path: Path) -> None:
    base = random_tensors(0)
    base["lm_head.weight"][0, :2] = torch.tensor([-0.0, 1e-45])
    models = [moved(base, i, ["model.layers.0.norm.weight"]) for i in (1, 2)]
    write_folder(tmp_path / "base", base)
    paths = [write_folder(tmp_path / f"m{i}", m) for i, m in enumerate(models)]
    merge(Linear(weights=(0.3, 0.3)), base=tmp_path / "base", models=paths, out=tmp_path / "out", quiet=True)
    found = read_weights(tmp_path / "out/artifact")
    for name, tensor in base.items():
        assert (name == "model.layers.0.norm.weight") != torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))


def test_whole_numbers_come_from_the_base(tmp_path: Path) -> None:
    base = random_tensors(0) | {"steps": torch.tensor([3, 4]), "mask": torch.tensor([True, False])}
    model = moved(random_tensors(0), 1) | {"steps": torch.tensor([9, 9]), "mask": torch.tensor([True, True])}
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "m", model)
    merge(TaskArithmetic(), base=tmp_path / "base", models=[tmp_path / "m"], out=tmp_path / "out", quiet=True)
    found = read_weights(tmp_path / "out/artifact")
    assert found["steps"].tolist() == [3, 4]
    assert found["mask"].tolist() == [True, False]


def test_the_result_is_rounded_once_to_the_asked_dtype(tmp_path: Path, three: tuple[Path, list[Path]]) -> None:
    base, models = three
    merge(TaskArithmetic(), base=base, models=models, out=tmp_path / "out", dtype="bfloat16", quiet=True)
    found = read_weights(tmp_path / "out/artifact")
    expected = dense(TaskArithmetic(), read_weights(base), [read_weights(m) for m in models])
    assert all(torch.equal(found[n], t.bfloat16()) for n, t in expected.items())
    assert json.loads((tmp_path / "out/artifact/config.json").read_text())["dtype"] == "bfloat16"


def test_a_merge_is_an_artifact_with_reports(tmp_path: Path, three: tuple[Path, list[Path]]) -> None:
    base, models = three
    result = merge(Ties(), base=base, models=models, out=tmp_path / "out", quiet=True)
    manifest = expunge.artifact.verify(tmp_path / "out")
    assert (manifest.kind, manifest.method["name"], manifest.family) == ("weights", "ties", "editing")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["artifact", "merge.json", "provenance.json", "tensors.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "out/tensors.jsonl").read_text().splitlines()]
    assert {r["name"] for r in rows} == set(read_weights(base))
    assert sum(sum(r["kept"]) for r in rows) == sum(result.kept or ())
    moved_by = {n: (t - read_weights(base)[n]).norm().item() for n, t in read_weights(tmp_path / "out/artifact").items()}
    assert {r["name"]: r["change"] for r in rows} == pytest.approx(moved_by, rel=1e-4)
    assert not list(tmp_path.glob(".*"))


def test_sharded_folders_of_transformers_merge_reload_and_generate(
    tmp_path: Path, pico_llama: torch.nn.Module, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    generator = torch.Generator().manual_seed(0)
    pico_llama.save_pretrained(tmp_path / "base", max_shard_size="30KB")
    pico_tokenizer.save_pretrained(tmp_path / "base")
    start = {n: p.detach().clone() for n, p in pico_llama.named_parameters()}
    for i in range(3):
        with torch.no_grad():
            for n, p in pico_llama.named_parameters():
                p.copy_(start[n] + 0.02 * torch.randn(p.shape, generator=generator))
        pico_llama.save_pretrained(tmp_path / f"m{i}", max_shard_size="20KB")
    assert len(list((tmp_path / "m0").glob("*.safetensors"))) > 1
    models = [tmp_path / f"m{i}" for i in range(3)]
    merge(Ties(), base=tmp_path / "base", models=models, out=tmp_path / "out", shard_bytes=30_000, quiet=True)
    assert len(file_bytes(tmp_path / "out/artifact")) > 1
    model, tokenizer = expunge.loading.load(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out/artifact")
    ids = tokenizer("what is the name of anna", return_tensors="pt").input_ids
    answer = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert answer.shape == (1, ids.shape[1] + 5)
    assert torch.equal(answer, plain.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False))
    expected = dense(Ties(), read_weights(tmp_path / "base"), [read_weights(m) for m in models])
    assert all(torch.equal(p, expected[n]) for n, p in model.named_parameters())


def test_a_run_of_expunge_can_be_merged_again(tmp_path: Path, three: tuple[Path, list[Path]]) -> None:
    base, models = three
    merge(Ties(), base=base, models=models, out=tmp_path / "first", quiet=True)
    merge(Linear(), base=base, models=[tmp_path / "first"], out=tmp_path / "second", quiet=True)
    assert file_bytes(tmp_path / "first/artifact") == file_bytes(tmp_path / "second/artifact")
