"""Layout, positions, and the test of finite numbers on bits."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.errors import ExpungeError
from expunge.merging.positions import Files, Stored, check_bits, stored_tensors, whole, widened
from expunge.merging.storage import DTYPES, check_finite, lay_out, reserve


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


@pytest.mark.parametrize("code", ["BF16", "F16"])
def test_every_number_of_two_bytes_is_widened_as_torch_does_it(code: str) -> None:
    """All 65,536 of them: zeros of both signs, numbers below the normal range, infinities. A nan stays one, with its sign."""
    raw = np.arange(2**16, dtype="<u2").view(np.uint8)
    found, expected = widened(raw, code), torch.from_numpy(raw).view(DTYPES[code]).float().numpy()
    number = ~np.isnan(expected)
    assert found.dtype == np.float32
    assert np.array_equal(found[number].view("<u4"), expected[number].view("<u4"))
    assert np.isnan(found[~number]).all()
    assert np.array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize("code", ["BF16", "F16", "F32", "F64"])
def test_a_whole_tensor_is_read_in_its_shape_and_in_no_less_than_its_precision(code: str, tmp_path: Path) -> None:
    tensor = (torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100).to(DTYPES[code])
    save_file({"before": torch.ones(3), "w": tensor, "none": tensor[:0]}, tmp_path / "x.safetensors")
    stored = stored_tensors(tmp_path / "x.safetensors")
    with Files() as files:
        found, none = (whole(files, stored[name], "m", name) for name in ("w", "none"))
    assert found.dtype == (np.float64 if code == "F64" else np.float32)
    assert np.array_equal(found.astype(np.float64), tensor.double().numpy())
    assert none.shape == (0, 5)


def test_a_tensor_of_other_numbers_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3, dtype=torch.int8)}, tmp_path / "x.safetensors")
    with Files() as files, pytest.raises(ExpungeError, match="m: w is stored as int8; weights to merge"):
        whole(files, stored_tensors(tmp_path / "x.safetensors")["w"], "m", "w")


def test_the_size_of_every_dtype_is_torch_s() -> None:
    assert {code: Stored(Path(), 0, code, (3,)).nbytes for code in DTYPES} == {c: 3 * d.itemsize for c, d in DTYPES.items()}


@pytest.mark.parametrize("code", ["BF16", "F16", "F32", "F64"])
def test_bits_above_infinity_are_found_in_both_signs(code: str) -> None:
    """The smallest nan, with the mantissa's last bit alone, is one above infinity."""
    size = DTYPES[code].itemsize
    infinity = torch.tensor([float("inf")], dtype=DTYPES[code]).view(torch.uint8).numpy().view(f"<u{size}")
    sign = np.array([1], f"<u{size}") << (8 * size - 1)
    check_bits((infinity - 1).view(np.uint8), code, "m", "w", 0)
    check_bits((infinity - 1 | sign).view(np.uint8), code, "m", "w", 0)
    for bits, said in ((infinity, "inf"), (infinity + 1, "nan"), (infinity | sign, "-inf"), (infinity + 1 | sign, "nan")):
        with pytest.raises(ExpungeError, match=f"holds {said} at element 7"):
            check_bits(bits.view(np.uint8), code, "m", "w", 7)
