"""Files of differences: changed tensors only, tied to their base by its hashes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.errors import ExpungeError
from expunge.merging import merge
from expunge.merging.opening import DELTA_KEY
from expunge.methods.editing import Linear, TaskArithmetic, Ties

from .conftest import file_bytes, moved, random_tensors, read_weights, write_folder

CHANGED = ["model.layers.0.mlp.down_proj.weight", "model.layers.0.norm.weight"]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Base, a model, and the file of their differences."""
    base = random_tensors(0, dtype=torch.bfloat16)
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "m", moved(base, 1, CHANGED))
    merge(TaskArithmetic(), base=tmp_path / "base", models=[tmp_path / "m"], out=tmp_path / "d", write="delta", quiet=True)
    return tmp_path / "base", tmp_path / "m", tmp_path / "d"


def test_holds_the_exact_differences_of_changed_tensors_alone(folders: tuple[Path, Path, Path]) -> None:
    base, model, delta = folders
    found, before, after = load_file(delta / "delta.safetensors"), read_weights(base), read_weights(model)
    assert set(found) == set(CHANGED)
    assert all(torch.equal(t, after[n].float() - before[n].float()) for n, t in found.items())


@pytest.mark.parametrize("method", [TaskArithmetic(scale=-2), Ties(density=0.3, scope="global_changed"), Linear()])
@pytest.mark.parametrize("as_file", [True, False])
def test_merges_like_the_model_that_it_stands_for(
    method: TaskArithmetic | Ties | Linear, as_file: bool, folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, model, delta = folders
    source = delta / "delta.safetensors" if as_file else delta
    merge(method, base=base, models=[source], out=tmp_path / "from_delta", quiet=True)
    merge(method, base=base, models=[model], out=tmp_path / "from_model", quiet=True)
    assert file_bytes(tmp_path / "from_delta/artifact") == file_bytes(tmp_path / "from_model/artifact")


def test_a_difference_is_not_rounded_to_the_places_of_its_base(tmp_path: Path) -> None:
    """1e-6 beside 1000 would vanish in float32."""
    name = "model.layers.0.norm.weight"
    base = {n: torch.full_like(t, 1000.0) for n, t in random_tensors(0).items()}
    write_folder(tmp_path / "base", base)
    merge_note = {DELTA_KEY: "{}", "format": "pt"}
    save_file({name: torch.full((8,), 1e-6)}, tmp_path / "small.safetensors", metadata=merge_note)
    merge(
        TaskArithmetic(scale=2),
        base=tmp_path / "base",
        models=[tmp_path / "small.safetensors"],
        out=tmp_path / "out",
        write="delta",
        quiet=True,
    )
    assert torch.equal(load_file(tmp_path / "out/delta.safetensors")[name], torch.full((8,), 2e-6))


def test_another_base_is_refused_before_anything_is_written(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, _, delta = folders
    base = random_tensors(0, dtype=torch.bfloat16)
    base[CHANGED[0]][0, 0] += 1
    write_folder(tmp_path / "other", base)
    with pytest.raises(ExpungeError, match=rf"was made for another base: {CHANGED[0]}"):
        merge(Ties(), base=tmp_path / "other", models=[delta], out=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_plain_safetensors_file_is_no_file_of_differences(tmp_path: Path) -> None:
    write_folder(tmp_path / "base", random_tensors(0))
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ExpungeError, match="not a file of differences"):
        merge(Ties(), base=tmp_path / "base", models=[tmp_path / "x.safetensors"], out=tmp_path / "out")


def test_the_hashes_are_in_the_header(folders: tuple[Path, Path, Path]) -> None:
    from expunge.merging.positions import metadata

    hashes = json.loads(metadata(folders[2] / "delta.safetensors")[DELTA_KEY])
    assert set(hashes) == set(CHANGED)
    assert all(len(h) == 64 for h in hashes.values())


def test_no_difference_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path / "base", random_tensors(0))
    with pytest.raises(ExpungeError, match="no model differs from the base"):
        merge(Ties(), base=tmp_path / "base", models=[tmp_path / "base"], out=tmp_path / "out", write="delta", quiet=True)
