"""Memory is that of a few pieces: neither larger tensors nor more or larger shards take more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .conftest import write_folder

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell its anonymous memory")

BOUND = 12e6
"""A histogram of 8 MB that comes and goes, and buffers; what is merged below are 41 MB, 82 in float32."""

PEAKS = """
import json, sys
from pathlib import Path
from expunge.memory import anonymous_bytes
from expunge.merging import merge, run
from expunge.methods.editing import Ties

folder, add, highest = Path(sys.argv[1]), run._Counter.add, 0

def watched(self, count):
    global highest
    highest = max(highest, anonymous_bytes())
    add(self, count)

run._Counter.add = watched
peaks = []
for case in [sys.argv[2], *sys.argv[2:]]:  # the first one twice: what is allocated once in a process
    names = {"base": folder / f"base{case}", "models": [folder / f"m{case}"], "out": folder / f"out{case}"}
    highest, before = 0, anonymous_bytes()
    for scope in ("global", "per_tensor"):
        merge(Ties(scope=scope), **names, shard_bytes=int(case) * 1000, threads=1, quiet=True, overwrite=True)
    peaks.append(highest - before)
print(json.dumps(peaks[1:]))
"""


def peaks(folder: Path, *cases: int) -> list[int]:
    """Anonymous bytes above the start, of a process that does nothing else, while each case is merged by TIES.

    Output shards hold as many thousand bytes as the number of the case.
    """
    words = [sys.executable, "-c", PEAKS, str(folder), *map(str, cases)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: list[int] = json.loads(done.stdout)
    return found


def test_one_shard_takes_no_more_than_ten(tmp_path: Path) -> None:
    base = {f"w{i}": torch.randn(2000, 1024).half() for i in range(10)}
    model = {name: (t.float() + 0.1 * torch.randn(2000, 1024)).half() for name, t in base.items()}
    for case, shards in ((4100, 10), (50_000, 1)):
        write_folder(tmp_path / f"base{case}", base, shards=shards)
        write_folder(tmp_path / f"m{case}", model, shards=shards)
    many, one = peaks(tmp_path, 4100, 50_000)
    assert [len(list((tmp_path / f"out{case}/artifact").glob("*.safetensors"))) for case in (4100, 50_000)] == [10, 1]
    assert max(many, one) < BOUND


def test_a_tensor_eight_times_as_large_takes_no_more(tmp_path: Path) -> None:
    for rows in (2500, 20_000):
        base = torch.randn(rows, 1024)
        write_folder(tmp_path / f"base{rows}", {"w": base.half()})
        write_folder(tmp_path / f"m{rows}", {"w": (base + 0.1 * torch.randn(rows, 1024)).half()})
    small, large = peaks(tmp_path, 2500, 20_000)
    assert max(small, large) < BOUND
