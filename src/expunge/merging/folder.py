"""Manages the hidden folder beside OUT in which a merge works, and renames it to OUT."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from expunge.errors import ExpungeError
from expunge.folders import (
    COMMAND,
    beside_of,
    check_apart,
    check_no_model,
    check_replaceable,
    check_writable,
    foreign_files,
    holds_something,
    keep_command,
)
from expunge.merging.journal import Findings, Journal
from expunge.merging.output import Output
from expunge.merging.report import MergeResult
from expunge.merging.storage import reserve


def check_out(out: Path, work: Path, inputs: Sequence[str], resume: bool, overwrite: bool) -> None:
    check_writable(out)
    check_apart(out, inputs)
    check_no_model(out)
    if resume and overwrite:
        raise ExpungeError("--resume goes on with a merge and --overwrite starts it anew; give one of them")
    if holds_something(out) and not overwrite:
        raise ExpungeError(f"{out} exists already; replace it by --overwrite, or give another --out")
    if overwrite:
        check_replaceable(out)
    if work.exists() and not (resume or overwrite):
        raise ExpungeError(f"an interrupted merge lies in {work}; go on with it by --resume, or start anew by --overwrite")


def finished_merge(out: Path, fingerprint: str) -> MergeResult | None:
    """Returns the result of this very merge, if it exists."""
    try:
        result = MergeResult.model_validate_json((out / "merge.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.plan == fingerprint else None


def is_complete(output: Output, work: Path) -> bool:
    """Returns whether all files that a journal mentions exist."""
    files = [(work / "weights" / shard.file, shard.nbytes) for shard in output.shards]
    return all(file.is_file() and file.stat().st_size == nbytes for file, nbytes in files)


def prepare(
    output: Output, work: Path, journal: Journal, fingerprint: str, findings: Findings, command: Sequence[str] = ()
) -> None:
    try:
        shutil.rmtree(work, ignore_errors=True)
        (work / "weights").mkdir(parents=True)
        for shard in output.shards:
            reserve(work / "weights" / shard.file, shard)
        if command:
            keep_command(work, command)
        journal.done.clear()
        journal.begin(fingerprint, findings)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise ExpungeError(f"{work} could not be made ({error}); choose another --out, or make room") from error


def put_in_place(work: Path, out: Path) -> None:
    """Renames the folder; an old one is removed afterwards, except for files of others."""
    (work / COMMAND).unlink(missing_ok=True)
    old = beside_of(out, "old")
    shutil.rmtree(old, ignore_errors=True)
    strangers = [file.name for file in foreign_files(out) if file.parent == out] if out.is_dir() else []
    if out.exists():
        os.replace(out, old)
    os.replace(work, out)
    for name in strangers:
        os.replace(old / name, out / name)
    shutil.rmtree(old, ignore_errors=True)
