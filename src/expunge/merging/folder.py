"""Checks OUT before a merge, and renames the hidden folder beside it, in which the merge has worked, to OUT."""

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
)


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
