"""Builds a whole lab in a folder, with a cache of earlier labs; an interrupted build resumes."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock
from transformers import LlamaForCausalLM

from expunge.errors import ExpungeError, nearest, reason
from expunge.folders import check_room, check_writable
from expunge.lab.figures import level_fault
from expunge.lab.layout import lab_fingerprint, write_data
from expunge.lab.models import Made, Maker
from expunge.lab.size import SIZES, SizeName
from expunge.lab.world import FORGETTABLE, generate
from expunge.records import write_json

THREADS = 1
"""Two threads save a third of the time on two idle cores and take ten times as long on busy ones."""
FIGURES_FILE = "figures.json"


def build(
    out: str | Path, seed: int = 0, size: SizeName = "tiny", gold: Sequence[str] = ("facts/forget",), *, quiet: bool = False
) -> Path:
    """Writes a lab into the folder `out` (data/, world.json, README.md, models/base, models/original, models/gold).

    gold   what to leave out for further gold models, e.g. `hazard/fumes`: models/gold_hazard_fumes is a base and original
           made without it. models/gold, which lacks facts/forget, is always there
    Every model is measured with the suite `lab` before it is saved. Training runs on one CPU thread. A lab of the same seed,
    size, code and torch is copied from $EXPUNGE_CACHE (default ~/.cache/expunge)/labs.

    Raises ExpungeError if `out` contains something else, for an unknown size or part, and if a figure misses its bound after
    three trainings.
    """
    if size not in SIZES:
        raise ExpungeError(f"there is no lab of size '{size}'{nearest(size, SIZES)}; choose among {', '.join(SIZES)}")
    parts = dict.fromkeys(("facts/forget", *gold))
    for part in parts:
        if part not in FORGETTABLE:
            raise ExpungeError(
                f"a gold model cannot lack '{part}'{nearest(part, FORGETTABLE)}; choose among {', '.join(FORGETTABLE)}"
            )
    out = Path(out)
    world = generate(seed, SIZES[size])
    fingerprint = lab_fingerprint(world, seed, size)
    _check_place(out, fingerprint)
    kept = cache_folder() / fingerprint
    models = ("base", "original", *map(gold_name, parts))
    if (out / "world.json").exists() and all((out / "models" / name).is_dir() for name in models):
        return out
    maker = Maker(kept, world, seed, size, quiet)
    check_writable(out)
    for place, advice in ((kept, "name another place for the cache by EXPUNGE_CACHE"), (out, "give another --out")):
        missing = sum(not (place / "models" / name).is_dir() for name in models)
        check_room(place, missing * maker.model_bytes(), f"a lab with {missing} more models", advice)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_suffix(".lock")):
        if not kept.is_dir():
            _whole(kept, lambda folder: write_data(folder, seed, size))
        with _threads(THREADS):
            _make_models(kept, maker, list(parts))
        if not (out / "world.json").exists():
            if out.is_dir():
                out.rmdir()
            _whole(out, lambda folder: write_data(folder, seed, size))
        for name in models:
            if not (out / "models" / name).is_dir():
                _whole(out / "models" / name, partial(shutil.copytree, kept / "models" / name, dirs_exist_ok=True))
    return out


def gold_name(part: str) -> str:
    """Returns the folder name of the gold model that lacks a part."""
    return "gold" if part == "facts/forget" else f"gold_{part.replace('/', '_')}"


def cache_folder() -> Path:
    return Path(os.environ.get("EXPUNGE_CACHE") or Path.home() / ".cache" / "expunge") / "labs"


def read_figures(model: Path) -> dict[str, float]:
    """Reads what a lab's model was measured to know when it was made: `task metric` -> value."""
    figures: dict[str, float] = json.loads((model / FIGURES_FILE).read_text(encoding="utf-8"))["figures"]
    return figures


def _make_models(lab: Path, maker: Maker, parts: Sequence[str]) -> None:
    """Makes the missing models, each from files, so that a resumed build ends with the same models."""
    models = lab / "models"
    base, original = models / "base", models / "original"
    if not base.is_dir():
        _save(maker, maker.base(), base)
    if not original.is_dir():
        _save(maker, maker.tuned(_load(base)), original)
    for part in parts:
        folder = models / gold_name(part)
        if folder.is_dir():
            continue
        if part == "facts/forget":
            rounds = json.loads((original / FIGURES_FILE).read_text(encoding="utf-8"))["rounds"]
            made = maker.tuned(_load(base), part, rounds)
            if missed := level_fault(read_figures(original), made.figures):
                raise ExpungeError(f"the lab's model 'gold' (seed {maker.seed}) is no gold model: {missed}")
        else:
            made = maker.tuned(maker.base(part).model, part)
        _save(maker, made, folder)


def _save(maker: Maker, made: Made, folder: Path) -> None:
    def fill(beside: Path) -> None:
        maker.save(made, beside)
        report = {"seconds": round(made.seconds, 1), "rounds": made.rounds, "figures": made.figures}
        write_json(beside / FIGURES_FILE, report)

    _whole(folder, fill)


def _load(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _whole(folder: Path, fill: Callable[[Path], object]) -> None:
    """Fills a temporary folder and renames it, so that an existing folder is complete. Raises ExpungeError on a full disk."""
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        fill(beside)
        beside.rename(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise ExpungeError(
            f"{folder} could not be written ({reason(error)}); make room, and the same command goes on after the last "
            "model that is complete"
        ) from error


def _check_place(out: Path, fingerprint: str) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        there = json.loads((out / "world.json").read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError):
        raise ExpungeError(f"{out} exists and is no lab; give a new or an empty folder") from None
    if there != fingerprint:
        raise ExpungeError(f"{out} holds a lab of another seed, size or version of the code; give a new or an empty folder")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Context manager with a fixed number of threads, which keeps the weights reproducible."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
