"""A merge that is killed at any moment goes on to the same bytes, and OUT appears whole or not at all."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.errors import ExpungeError
from expunge.merging import journal, merge, positions, thresholds
from expunge.methods.editing import DareLinear, Ties
from expunge.methods.editing.base import EditingMethod

from .conftest import file_bytes, moved, random_tensors, write_folder
from .test_adapters import adapter


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 16 elements, each write waits a little, and each tensor goes to the journal at once."""
    monkeypatch.setattr(positions, "PIECE", 16)
    monkeypatch.setattr(thresholds, "PIECE", 16)
    monkeypatch.setattr(journal, "FLUSH_BYTES", 0)
    write = positions.Files.write

    def slowly(self: positions.Files, file: Path, offset: int, data: memoryview) -> None:
        time.sleep(0.0005)
        write(self, file, offset, data)

    monkeypatch.setattr(positions.Files, "write", slowly)


def in_a_process(work: Callable[[], object]) -> int:
    """Forks; the child leaves without a word."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def inputs(tmp_path: Path) -> dict[str, Any]:
    base = random_tensors(0, dtype=torch.bfloat16)
    write_folder(tmp_path / "base", base)
    models = [write_folder(tmp_path / f"m{i}", moved(base, i + 1, None if i else ["lm_head.weight"])) for i in range(2)]
    return {"base": tmp_path / "base", "models": models, "quiet": True, "threads": 2, "shard_bytes": 700}


@pytest.mark.parametrize("method", [Ties(), DareLinear(density=0.5)], ids=["ties", "dare_linear"])
def test_killed_again_and_again_it_reaches_the_same_bytes(method: EditingMethod, tmp_path: Path, slow: None) -> None:
    given = inputs(tmp_path)
    began = time.perf_counter()
    merge(method, out=tmp_path / "whole", **given)
    whole = time.perf_counter() - began
    chance, kills, went_on = random.Random(1), 0, False
    lines = tmp_path / ".out.partial/journal.jsonl"

    def journaled() -> int:
        return len(lines.read_text().splitlines()) if lines.exists() else 0

    for attempt in range(40):
        pid = in_a_process(lambda: merge(method, out=tmp_path / "out", resume=True, **given))
        if attempt < 12:
            before = max(journaled(), 1)
            while (
                attempt % 2 and journaled() <= before and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            ):
                time.sleep(0.001)  # every other kill comes after a further tensor, however slow the machine is
            time.sleep(chance.uniform(0, 0.1) * whole)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
        kills += 1
        assert not (tmp_path / "out").exists()
        went_on = went_on or journaled() > 1
    assert kills >= 2
    assert went_on, "no kill came after a finished tensor"
    assert file_bytes(tmp_path / "out/artifact") == file_bytes(tmp_path / "whole/artifact")
    assert not list(tmp_path.glob(".out*"))


def stopped_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A merge whose disk fills up after two tensors."""
    given, write, count = inputs(tmp_path) | {"threads": 1}, positions.Files.write, [0]

    def fills_up(self: positions.Files, file: Path, offset: int, data: memoryview) -> None:
        count[0] += 1
        if count[0] > 2:
            raise OSError(28, "No space left on device")
        write(self, file, offset, data)

    monkeypatch.setattr(journal, "FLUSH_BYTES", 0)
    with monkeypatch.context() as patch:
        patch.setattr(positions.Files, "write", fills_up)
        with pytest.raises(ExpungeError, match=r"No space left.*--resume"):
            merge(Ties(), out=tmp_path / "out", **given)
    return given


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = stopped_half_way(tmp_path, monkeypatch)
    assert not (tmp_path / "out").exists()
    result = merge(Ties(), out=tmp_path / "out", resume=True, **given)
    assert result.resumed == 2
    merge(Ties(), out=tmp_path / "whole", **given)
    assert file_bytes(tmp_path / "out/artifact") == file_bytes(tmp_path / "whole/artifact")
    assert (tmp_path / "out/tensors.jsonl").read_text() == (tmp_path / "whole/tensors.jsonl").read_text()


def test_a_disk_that_fills_up_under_the_reports_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("expunge.merging.finish.write_text", full)
        with pytest.raises(ExpungeError, match=r"No space left.*--resume"):
            merge(Ties(), out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    assert merge(Ties(), out=tmp_path / "out", resume=True, **given).resumed == 5
    merge(Ties(), out=tmp_path / "whole", **given)
    assert file_bytes(tmp_path / "out/artifact") == file_bytes(tmp_path / "whole/artifact")


def test_an_interrupted_merge_is_neither_forgotten_nor_mixed_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = stopped_half_way(tmp_path, monkeypatch)
    with pytest.raises(ExpungeError, match="an interrupted merge lies in"):
        merge(Ties(), out=tmp_path / "out", **given)
    with pytest.raises(ExpungeError, match="is of another merge"):
        merge(Ties(density=0.3), out=tmp_path / "out", resume=True, **given)
    changed_in_place(tmp_path / "m0/model.safetensors")
    with pytest.raises(ExpungeError, match="an input file differ"):
        merge(Ties(), out=tmp_path / "out", resume=True, **given)
    merge(Ties(density=0.3), out=tmp_path / "out", overwrite=True, **given)
    assert (tmp_path / "out/artifact/expunge.json").exists()


def changed_in_place(file: Path) -> None:
    """The last byte is another one; size and time are as they were."""
    content, stat = bytearray(file.read_bytes()), file.stat()
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_inputs_are_known_by_their_content_and_not_by_their_time(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    first = merge(Ties(), out=tmp_path / "out", **given)
    os.utime(tmp_path / "m0/model.safetensors", ns=(1, 1))
    assert merge(Ties(), out=tmp_path / "out", resume=True, **given) == first
    changed_in_place(tmp_path / "m0/model.safetensors")
    with pytest.raises(ExpungeError, match="exists already"):
        merge(Ties(), out=tmp_path / "out", resume=True, **given)


def test_an_adapter_with_another_scale_is_another_input(tmp_path: Path, pico_folder: Path) -> None:
    folder = adapter(tmp_path / "a", pico_folder, 1)
    given = {"base": pico_folder, "models": [folder], "out": tmp_path / "out", "quiet": True}
    merge(Ties(), **given)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 60}))
    with pytest.raises(ExpungeError, match="exists already"):
        merge(Ties(), resume=True, **given)


def test_resuming_a_complete_merge_gives_its_result(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    first = merge(Ties(), out=tmp_path / "out", **given)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert merge(Ties(), out=tmp_path / "out", resume=True, **given) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(ExpungeError, match="exists already"):
        merge(Ties(density=0.3), out=tmp_path / "out", resume=True, **given)


def test_a_journal_cut_in_the_middle_of_a_line_is_believed_up_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = stopped_half_way(tmp_path, monkeypatch)
    lines = tmp_path / ".out.partial/journal.jsonl"
    lines.write_text(lines.read_text()[:-9])
    result = merge(Ties(), out=tmp_path / "out", resume=True, **given)
    assert result.resumed == 1
    merge(Ties(), out=tmp_path / "whole", **given)
    assert file_bytes(tmp_path / "out/artifact") == file_bytes(tmp_path / "whole/artifact")


def test_a_result_that_is_replaced_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    merge(Ties(), out=tmp_path / "out", **given)
    before = file_bytes(tmp_path / "out/artifact")
    tensors = moved(random_tensors(0, dtype=torch.bfloat16), 9)
    tensors["lm_head.weight"][0, 0] = float("nan")
    write_folder(tmp_path / "bad", tensors)
    with pytest.raises(ExpungeError, match="nan"):
        merge(Ties(density=1.0), out=tmp_path / "out", overwrite=True, **(given | {"models": [tmp_path / "bad"]}))
    assert file_bytes(tmp_path / "out/artifact") == before
