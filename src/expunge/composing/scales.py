"""Writes the artifacts of several scales of one composed run."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from expunge.artifact import Kind, save_artifact
from expunge.composing.stages import Stages
from expunge.methods.base import ComposedMethod
from expunge.processes import is_main

SCALES = "scales"


def write_scales(stages: Stages, kind: Kind, variants: Sequence[tuple[float, ComposedMethod, Callable[[Path], None]]]) -> None:
    """Writes RUN/scales/SCALE/artifact of each (scale, method with that scale, function that fills the folder); nothing for a
    single one. Artifacts of other scales are removed, what lies beside them is not."""
    if not is_main():
        return
    wanted = {f"{scale:g}" for scale, _, _ in variants} if len(variants) > 1 else set()
    for old in (stages.out / SCALES).glob("*/artifact"):
        if old.parent.name not in wanted:
            shutil.rmtree(old)
    for empty in (*(stages.out / SCALES).glob("*"), stages.out / SCALES):
        with suppress(OSError):
            empty.rmdir()
    if not wanted:
        return
    start = stages.context.start
    sha256 = start.fingerprint()
    listed = ", ".join(f"{scale:g}" for scale, _, _ in variants)
    for scale, method, write in variants:
        out = stages.out / SCALES / f"{scale:g}"
        notes = f"One of several scales of one run: {listed}."
        save_artifact(out / "artifact", kind, method, start.base(out, sha256), write, notes=notes)
