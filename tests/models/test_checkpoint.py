"""Weights on disk: lazy, exact, whole or not there."""

import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from expunge.errors import ExpungeError
from expunge.models import checkpoint
from expunge.models.checkpoint import INDEX, SINGLE, Checkpoint, save_arrays, save_tensors


def make_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "b.weight": torch.randn(4, 5),
        "a.weight": torch.randn(3, 2).bfloat16(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 7),
        "c.ids": torch.arange(6),
    }


def write(folder: Path, max_shard_bytes: int = 5_000_000_000) -> None:
    folder.mkdir(exist_ok=True)
    save_torch_state_dict(make_tensors(), folder, max_shard_size=max_shard_bytes)


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 90, 1])
def test_every_tensor_is_read_in_any_number_of_shards(tmp_path: Path, max_shard_bytes: int) -> None:
    tensors = make_tensors()
    write(tmp_path / "m", max_shard_bytes)
    read = Checkpoint(tmp_path / "m")
    assert set(read) == set(tensors)
    assert len(read) == 5
    assert read.nbytes == sum(t.nbytes for t in tensors.values())
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert (read.entries[name].dtype, read.entries[name].shape) == (tensor.dtype, tuple(tensor.shape))
    assert (tmp_path / "m" / SINGLE).exists() == (max_shard_bytes == 5_000_000_000)


def test_what_transformers_writes_is_read(tmp_path: Path, pico_llama: LlamaForCausalLM) -> None:
    pico_llama.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    theirs = Checkpoint(tmp_path / "theirs")
    assert {e.file.name for e in theirs.entries.values()} == {p.name for p in (tmp_path / "theirs").glob("*.safetensors")}
    assert all(torch.equal(theirs[name], tensor) for name, tensor in pico_llama.state_dict().items())


def test_opening_reads_headers_and_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr(checkpoint, "safe_open", lambda *_a, **_k: pytest.fail("data was read"))
    assert Checkpoint(tmp_path).entries["b.weight"].shape == (4, 5)


def test_changing_a_read_tensor_changes_no_later_read(tmp_path: Path) -> None:
    write(tmp_path)
    read = Checkpoint(tmp_path)
    read["b.weight"].zero_()
    assert torch.equal(read["b.weight"], make_tensors()["b.weight"])


def test_iteration_follows_the_disk(tmp_path: Path) -> None:
    write(tmp_path, 90)
    entries = list(Checkpoint(tmp_path).entries.values())
    assert [(e.file.name, e.start) for e in entries] == sorted((e.file.name, e.start) for e in entries)


def test_one_file_is_a_checkpoint_too(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "guard.safetensors", metadata={"format": "pt"})
    assert Checkpoint(tmp_path / "guard.safetensors")["x"].tolist() == [1.0, 1.0]


def test_a_missing_tensor_is_named_with_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(KeyError, match=r"did you mean 'a\.weight'"):
        Checkpoint(tmp_path)["a.weigth"]
    assert "a.weigth" not in Checkpoint(tmp_path)


def test_tensors_that_share_memory_are_each_written(tmp_path: Path) -> None:
    tied = torch.randn(3, 3)
    save_tensors(tmp_path / "x.safetensors", {"head": tied, "embeddings": tied, "transposed": tied.T, "row": tied[1]})
    read = Checkpoint(tmp_path / "x.safetensors")
    for name, expected in (("head", tied), ("embeddings", tied), ("transposed", tied.T), ("row", tied[1])):
        assert torch.equal(read[name], expected)


def test_arrays_are_written_byte_for_byte_as_tensors_are(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 4),
        "a": torch.arange(5),
        "turned": torch.randn(3, 2, dtype=torch.float64).T,
        "one": torch.ones(()),
    }
    save_tensors(tmp_path / "tensors", tensors)
    save_arrays(tmp_path / "arrays", {name: tensor.numpy() for name, tensor in tensors.items()})
    assert (tmp_path / "arrays").read_bytes() == (tmp_path / "tensors").read_bytes()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_written_file_has_the_permissions_that_the_umask_gives(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == mode


def test_a_failed_write_keeps_the_file_before_it_and_leaves_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})

    def full(_: object, file: Path, **__: object) -> None:
        file.write_bytes(b"half")
        raise checkpoint.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    assert Checkpoint(tmp_path / "x.safetensors")["a"].item() == 1


def test_damaged_folders_are_refused_when_opened(tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="holds neither"):
        Checkpoint(tmp_path)
    write(tmp_path, 90)
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    whole = first.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"\xff" * 64, b"PK" + whole):
        first.write_bytes(damaged)
        with pytest.raises(ExpungeError, match="copy it again"):
            Checkpoint(tmp_path)
    first.write_bytes(whole)
    Checkpoint(tmp_path)
    second.rename(tmp_path / "elsewhere")
    with pytest.raises(ExpungeError, match=f"lacks the shard {second.name}"):
        Checkpoint(tmp_path)
    (tmp_path / "elsewhere").rename(second)
    second.write_bytes(whole)
    with pytest.raises(ExpungeError, match="that the index promises"):
        Checkpoint(tmp_path)
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(ExpungeError, match="not an index"):
        Checkpoint(tmp_path)
