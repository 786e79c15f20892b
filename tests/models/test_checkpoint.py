"""Weights on disk: lazy, exact, whole or not there."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from expunge.errors import ExpungeError
from expunge.models import checkpoint
from expunge.models.checkpoint import INDEX, SINGLE, Checkpoint, write_checkpoint


def make_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "b.weight": torch.randn(4, 5),
        "a.weight": torch.randn(3, 2).bfloat16(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 7),
        "c.ids": torch.arange(6),
    }


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 90, 1])
def test_what_is_written_is_read_in_any_number_of_shards(tmp_path: Path, max_shard_bytes: int) -> None:
    tensors = make_tensors()
    write_checkpoint(tmp_path / "m", tensors.items(), max_shard_bytes=max_shard_bytes)
    read = Checkpoint(tmp_path / "m")
    assert set(read) == set(tensors)
    assert len(read) == 5
    assert read.nbytes == sum(t.nbytes for t in tensors.values())
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert (read.entries[name].dtype, read.entries[name].shape) == (tensor.dtype, tuple(tensor.shape))
    assert (tmp_path / "m" / SINGLE).exists() == (max_shard_bytes == 5_000_000_000)
    assert not [p for p in (tmp_path / "m").iterdir() if p.name.startswith(".")]


def test_shards_stay_within_the_limit_unless_one_tensor_is_larger(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, ((f"t{i}", torch.zeros(10)) for i in range(7)), max_shard_bytes=85)
    sizes = [sum(t.nbytes for t in load_file(f).values()) for f in sorted(tmp_path.glob("*.safetensors"))]
    assert sizes == [80, 80, 80, 40]
    assert json.loads((tmp_path / INDEX).read_text())["metadata"]["total_size"] == 280


def test_transformers_loads_what_is_written_and_writes_what_is_read(tmp_path: Path, pico_llama: LlamaForCausalLM) -> None:
    pico_llama.config.save_pretrained(tmp_path / "ours")
    write_checkpoint(tmp_path / "ours", pico_llama.state_dict().items(), max_shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    for name, tensor in pico_llama.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    pico_llama.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    theirs = Checkpoint(tmp_path / "theirs")
    assert {e.file.name for e in theirs.entries.values()} == {p.name for p in (tmp_path / "theirs").glob("*.safetensors")}
    assert all(torch.equal(theirs[name], tensor) for name, tensor in pico_llama.state_dict().items())


def test_opening_reads_headers_and_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, make_tensors().items())
    monkeypatch.setattr(checkpoint, "safe_open", lambda *_a, **_k: pytest.fail("data was read"))
    assert Checkpoint(tmp_path).entries["b.weight"].shape == (4, 5)


def test_changing_a_read_tensor_changes_no_later_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, make_tensors().items())
    read = Checkpoint(tmp_path)
    read["b.weight"].zero_()
    assert torch.equal(read["b.weight"], make_tensors()["b.weight"])


def test_iteration_follows_the_disk(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, make_tensors().items(), max_shard_bytes=90)
    entries = list(Checkpoint(tmp_path).entries.values())
    assert [(e.file.name, e.start) for e in entries] == sorted((e.file.name, e.start) for e in entries)


def test_one_file_is_a_checkpoint_too(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "guard.safetensors", metadata={"format": "pt"})
    assert Checkpoint(tmp_path / "guard.safetensors")["x"].tolist() == [1.0, 1.0]


def test_a_missing_tensor_is_named_with_its_neighbour(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, make_tensors().items())
    with pytest.raises(KeyError, match=r"did you mean 'a\.weight'"):
        Checkpoint(tmp_path)["a.weigth"]
    assert "a.weigth" not in Checkpoint(tmp_path)


def test_tied_tensors_are_both_written(tmp_path: Path) -> None:
    tied = torch.randn(3, 3)
    write_checkpoint(tmp_path, [("head", tied), ("embeddings", tied), ("transposed", tied.T), ("row", tied[1])])
    read = Checkpoint(tmp_path)
    for name, expected in (("head", tied), ("embeddings", tied), ("transposed", tied.T), ("row", tied[1])):
        assert torch.equal(read[name], expected)


def test_a_failure_in_the_middle_leaves_no_checkpoint_and_no_debris(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.ones(4)
        yield "b", torch.ones(4)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_checkpoint(tmp_path, tensors(), max_shard_bytes=16)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_weights_are_not_overwritten(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, make_tensors().items())
    with pytest.raises(ExpungeError, match="holds weights already"):
        write_checkpoint(tmp_path, make_tensors().items())


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="comes twice"):
        write_checkpoint(tmp_path, [("a", torch.ones(1)), ("a", torch.ones(1))], max_shard_bytes=1)


def test_damaged_folders_are_refused_when_opened(tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="holds neither"):
        Checkpoint(tmp_path)
    write_checkpoint(tmp_path, make_tensors().items(), max_shard_bytes=90)
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
