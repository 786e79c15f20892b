"""Layout, positions, and the test of finite numbers on bits."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expunge.errors import ExpungeError
from expunge.merging.storage import Files, check_finite, lay_out, reserve, stored_tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_one_number_that_is_not_finite_is_found_and_placed(dtype: torch.dtype, value: float) -> None:
    good = torch.tensor([0.0, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).min, torch.finfo(dtype).tiny], dtype=dtype)
    check_finite(good, "m", "w", 0)
    bad = good.clone()
    bad[3] = value
    with pytest.raises(ExpungeError, match=r"m: w holds -?(inf|nan) at element 1003"):
        check_finite(bad, "m", "w", 1000)


def test_a_negative_nan_is_found_too() -> None:
    bad = torch.tensor([-1], dtype=torch.int32).view(torch.float32)
    with pytest.raises(ExpungeError, match="nan"):
        check_finite(bad, "m", "w", 0)


def test_the_planned_files_are_what_safetensors_reads(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "odd": torch.randn(3, generator=generator).bfloat16(),
        "wide": torch.randn(5, 7, generator=generator),
        "flag": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "number": torch.tensor(7),
    }
    shards, places = lay_out({n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()}, 100)
    assert len(shards) > 1
    with Files() as files:
        for shard in shards:
            reserve(tmp_path / shard.file, shard)
        for name, tensor in tensors.items():
            place = places[name]
            assert place.offset % tensor.itemsize == 0
            files.write(tmp_path / place.file, place.offset, tensor.flatten().view(torch.uint8).numpy().data)
    found = {n: t for shard in shards for n, t in load_file(tmp_path / shard.file).items()}
    assert set(found) == set(tensors)
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in tensors.items())
    assert all((tmp_path / shard.file).stat().st_size == shard.nbytes for shard in shards)


def test_a_shard_holds_no_more_than_asked_for_unless_one_tensor_does() -> None:
    sizes = {f"t{i}": (torch.float32, (10,)) for i in range(7)} | {"large": (torch.float32, (100,))}
    shards, places = lay_out(sizes, 100)
    assert [s.nbytes - len(s.header) for s in shards] == [80, 80, 80, 40, 400]
    assert places["large"].file == "model-00005-of-00005.safetensors"


def test_places_of_tensors_are_absolute(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + torch.tensor([1.0, 2.0]).numpy().tobytes())
    stored = stored_tensors(tmp_path / "x.safetensors")["w"]
    assert stored.offset == 8 + len(header)
    assert (stored.elements, stored.nbytes) == (2, 8)
