"""Runs SPUNGE: splits the forget set, runs a method on each part, and merges the results.

run/  parts/VALUE/   rows.txt (which rows), run.yaml, metrics.jsonl, provenance.json, and artifact/ while it is needed
      merge.json  tensors.jsonl   what the merge kept and changed
"""

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from expunge.composing.sorting import sort_rows
from expunge.composing.stages import Stages, copy_artifact, trained
from expunge.data.example import Attribute, Request
from expunge.data.read import read_request, split_conditions
from expunge.data.where import choose, write_rows
from expunge.errors import ExpungeError
from expunge.methods.composed.spunge import Parts, Spunge, part_request
from expunge.methods.training.base import TrainingMethod
from expunge.processes import is_main
from expunge.records import write_text
from expunge.runner import Made, Outcome
from expunge.spec import Run, to_yaml
from expunge.training.defaults import resolve

MERGED = "merged"
LONGEST_NAME = 80
"""Longest folder name of a part, in bytes of the attribute's value."""


def unlearn_parts(method: Spunge, stages: Stages) -> Made:
    """Runs all parts and merges them; all checks come before the first part is written. Raises ExpungeError, with the name of
    the part, for an error in a part."""
    request = stages.request
    parts = divide(method, request, stages)
    runs = _part_runs(method, stages, parts)
    for (value, rows), (name, part_run) in zip(parts.items(), list(runs.items()), strict=True):
        part = part_request(request, rows)
        try:
            stages.context.check(part_run, part)
            if isinstance(part_run.method, TrainingMethod):  # another process compares with what the folder says
                runs[name] = resolve(part_run, part, stages.context.start)[0]
        except ExpungeError as error:
            raise ExpungeError(f"part '{value}': {error}") from error
    stages.context.prepare()
    _write_rows(stages, dict(zip(runs, parts.values(), strict=True)))
    outcomes = _together(method, stages, runs) if method.processes > 1 else _in_turn(stages, runs)
    result = stages.merge(method.merge, [o.artifact for _, o in outcomes], MERGED, write=method.write, rank=method.rank)
    counts = {f"forget {value}": len(rows) for value, rows in parts.items()}
    notes = "Parts: " + ", ".join(f"{value} ({len(rows)} rows)" for value, rows in parts.items()) + "."
    notes += "".join(f" {trained(f'part {name}', outcome)}." for name, outcome in outcomes)
    if result is not None:
        notes += f"\n\n```\n{result.sentences()}\n```"
        for name in ("merge.json", "tensors.jsonl"):
            shutil.copyfile(stages.out / MERGED / name, stages.out / name)
    made_by_parts = [stages.out / name / made for name in runs for made in ("artifact", "expert/artifact")]
    return stages.made(
        method.write,
        notes,
        partial(copy_artifact, stages.out / MERGED / "artifact", outcomes[0][1].artifact),
        outcomes,
        [stages.out / MERGED, *([] if method.keep_parts else made_by_parts)],
        counts,
    )


def divide(method: Spunge, request: Request, stages: Stages) -> Parts:
    """Returns value -> rows of `request.forget`."""
    if method.split_by_classifier is None:
        return method.check(method.parts(request, _file_names(stages.run.forget)))
    return method.check(sort_rows(method, request.forget, stages.run, str(stages.source)))


def _file_names(sources: Sequence[str]) -> list[str]:
    """Returns names of the forget files without endings, sets and conditions, with as many parent folders as distinguish
    them; numbered if their paths do not."""
    paths = [Path(str(split_conditions(source)[0]).partition(":")[0]) for source in sources]
    words = [(*path.parts[:-1], path.name.partition(".")[0]) for path in paths]
    for depth in range(1, max(map(len, words)) + 1):
        names = ["_".join(some[-depth:]) for some in words]
        if len(set(names)) == len(names):
            return names
    return [f"{i}_{some[-1]}" for i, some in enumerate(words)]


def _part_runs(method: Spunge, stages: Stages, parts: Parts) -> dict[str, Run]:
    """Returns folder -> run. Each part starts from the same model, with the next seed."""
    runs: dict[str, Run] = {}
    for i, value in enumerate(parts):
        name = f"parts/{_folder_name(value)}"
        name += f"_{i}" if name in runs else ""
        training = stages.run.training.model_copy(update={"seed": stages.run.training.seed + i})
        own = {"method": method.method_of(i, len(parts)), "training": training, "where": ()}
        runs[name] = stages.run.model_copy(update={**own, "only": str(stages.out / name / "rows.txt")})
    return runs


def _folder_name(value: Attribute) -> str:
    """Converts a value to a valid folder name; a long one becomes its beginning and a hash."""
    name = re.sub(r"[^\w.-]+", "_", str(value)).strip("._") or "part"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _write_rows(stages: Stages, rows_of: Mapping[str, Sequence[int]]) -> None:
    """Writes rows.txt of each part. Raises ExpungeError if a part that is resumed has other rows."""
    run = stages.run
    if stages.context.overwrite and is_main():
        shutil.rmtree(stages.out / "parts", ignore_errors=True)
    examples = read_request(run.forget, columns=run.columns or None).forget
    chosen = choose(examples, run.where, run.only)
    for name, rows in rows_of.items():
        file, text = stages.out / name / "rows.txt", write_rows(examples, [chosen[row] for row in rows])
        if stages.context.resume and file.is_file() and file.read_text(encoding="utf-8") != text:
            raise ExpungeError(f"{file} holds another part than the data gives now; start anew with --overwrite")
        if is_main():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, text)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _in_turn(stages: Stages, runs: Mapping[str, Run]) -> list[tuple[str, Outcome]]:
    # a part's folder exists already, with its rows in it: taken up, where nothing was done it simply begins
    begin = Stages(dataclasses.replace(stages.context, resume=True, overwrite=False))
    return [(Path(name).name, begin.execute(run, name)) for name, run in runs.items()]


def _together(method: Spunge, stages: Stages, runs: Mapping[str, Run]) -> list[tuple[str, Outcome]]:
    """Runs several parts at a time, each as `expunge unlearn --config parts/VALUE/run.yaml`, with its output in log.txt."""
    threads = max(1, torch.get_num_threads() // method.processes)
    devices = torch.cuda.device_count()
    waiting, running = list(enumerate(runs)), dict[str, subprocess.Popen[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < method.processes:
                place, name = waiting.pop(0)
                there = {"CUDA_VISIBLE_DEVICES": str(place % devices)} if devices > 1 else {}
                running[name] = _start(stages, name, runs[name], {"OMP_NUM_THREADS": str(threads), **there})
            name, process = next(iter(running.items()))
            if process.wait() != 0:
                last = (stages.out / name / "log.txt").read_text(encoding="utf-8").strip().splitlines()[-1:]
                raise ExpungeError(f"part {Path(name).name} failed ({''.join(last)}); its log is {stages.out / name / 'log.txt'}")
            del running[name]
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
    folders = {Path(name).name: stages.out / name for name in runs}
    return [(name, Outcome(folder, folder / "artifact", _steps(folder), None)) for name, folder in folders.items()]


def _steps(folder: Path) -> int:
    """Returns the steps of a part that another process ran; those of a composed one are in a subfolder."""
    logs = [log for log in (folder / "metrics.jsonl", folder / "expert" / "metrics.jsonl") if log.is_file()]
    return sum(len(log.read_text(encoding="utf-8").splitlines()) for log in logs)


def _start(stages: Stages, name: str, run: Run, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    folder = stages.out / name
    write_text(folder / "run.yaml", to_yaml(run))
    words = ["unlearn", "--config", str(folder / "run.yaml"), "--out", str(folder), "--resume"]
    with open(folder / "log.txt", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "expunge", *words], env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT
        )
