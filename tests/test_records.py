"""Files that belong together are on the disk together, or not at all."""

import os
from pathlib import Path

import pytest

from expunge.records import Attack, Sample, write_scores, write_together


def fails_at(monkeypatch: pytest.MonkeyPatch, call: int, name: str = "fsync") -> None:
    """The disk is full (or the process is killed) at this call of os.NAME."""
    real, count = getattr(os, name), [0]

    def once(*given: object) -> object:
        count[0] += 1
        if count[0] == call:
            raise OSError(28, "No space left on device")
        return real(*given)

    monkeypatch.setattr(os, name, once)


def test_a_full_disk_leaves_scores_with_their_own_samples_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, rows = tmp_path / "out/noise.json", [Sample(task="t", metric="m", id="a", value=1.0)]
    fails_at(monkeypatch, 2)
    with pytest.raises(OSError, match=r"No space left on device.*noise\.json"):
        write_scores(file, Attack(attack="noise"), rows)
    assert not (tmp_path / "out").exists()
    write_scores(file, Attack(attack="noise"), rows)
    before = {path.name: path.read_text() for path in file.parent.iterdir()}
    fails_at(monkeypatch, 2)
    with pytest.raises(OSError, match="No space left"):
        write_scores(file, Attack(attack="noise", seconds=2.0), [])
    assert {path.name: path.read_text() for path in file.parent.iterdir()} == before


def test_a_kill_in_between_leaves_files_missing_and_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    write_together({first: "old", second: "old"})
    fails_at(monkeypatch, 2, "replace")
    with pytest.raises(OSError, match="No space left"):
        write_together({first: "new", second: "new"})
    assert first.read_text() == "new"
    assert not second.exists()
