"""Memory is that of a few pieces: neither larger tensors nor more shards take more."""

import sys
from pathlib import Path

import pytest
import torch

from expunge.memory import anonymous_bytes
from expunge.merging import merge, run
from expunge.methods.editing import Ties
from expunge.methods.editing.base import EditingMethod

from .conftest import write_folder


def peak(folder: Path, method: EditingMethod, rows: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Anonymous bytes above the start while a tensor of `rows` x 1024 is merged."""
    highest, add = [0], run._Counter.add
    with monkeypatch.context() as patch:

        def watched(self: run._Counter, count: int) -> None:
            highest[0] = max(highest[0], anonymous_bytes())
            add(self, count)

        patch.setattr(run._Counter, "add", watched)
        before = anonymous_bytes()
        merge(
            method,
            base=folder / f"base{rows}",
            models=[folder / f"m{rows}"],
            out=folder / f"out{rows}",
            quiet=True,
            overwrite=True,
        )
    return highest[0] - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell its anonymous memory")
@pytest.mark.parametrize("method", [Ties(), Ties(scope="per_tensor")], ids=["global", "per_tensor"])
def test_a_tensor_eight_times_as_large_takes_no_more(
    method: EditingMethod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows in (2500, 20_000):
        base = torch.randn(rows, 1024)
        write_folder(tmp_path / f"base{rows}", {"w": base.half()})
        write_folder(tmp_path / f"m{rows}", {"w": (base + 0.1 * torch.randn(rows, 1024)).half()})
        del base
    peak(tmp_path, method, 2500, monkeypatch)  # what is allocated once in a process
    small, large = (peak(tmp_path, method, rows, monkeypatch) for rows in (2500, 20_000))
    assert large < small + 12e6
    assert large < 0.8 * 20_000 * 1024 * 2
