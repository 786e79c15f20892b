"""Runs stages of composed methods as runs, merges their artifacts, and adds up their cost."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from expunge import merging
from expunge.data.example import Request
from expunge.data.format import FORMAT_FILE
from expunge.memory import PeakMemory
from expunge.merging.plan import Write
from expunge.methods.editing import EditingMethod
from expunge.processes import is_main
from expunge.records import Provenance
from expunge.runner import AnyRun, Context, Made, Outcome
from expunge.spec import Run


@dataclass(frozen=True)
class Stages:
    """Executes the stages of one composed run."""

    context: Context

    @property
    def run(self) -> Run:
        assert isinstance(self.context.run, Run)
        return self.context.run

    @property
    def request(self) -> Request:
        return self.context.request

    @property
    def source(self) -> Path | str:
        """Returns the model that every stage starts from."""
        return self.context.start.place

    @property
    def out(self) -> Path:
        return self.context.out

    def execute(self, run: AnyRun, name: str) -> Outcome:
        """Executes a run in the subfolder `name`; a complete one is not repeated."""
        context = self.context
        return context.execute(
            run,
            self.out / name,
            resume=context.resume,
            overwrite=context.overwrite,
            quiet=context.quiet,
            before=context.prepare,
        )

    def base_folder(self) -> Path:
        """Returns the folder of the start model's files; a hub model has been downloaded by an earlier stage."""
        return self.context.start.folder

    def merge(
        self, method: EditingMethod, models: Sequence[Path], name: str, *, write: Write = "weights", rank: int | None = None
    ) -> merging.MergeResult | None:
        """Merges the stages' artifacts into the start model, in the subfolder `name`; on one of several processes."""
        if not is_main():
            return None
        request = merging.make_request(
            method, base=self.base_folder(), models=models, write=write, rank=rank, dtype=self.run.dtype
        )
        return merging.execute(request, self.out / name, overwrite=True, quiet=self.context.quiet)

    def made(
        self,
        kind: Write,
        notes: str,
        write: Callable[[Path], None],
        outcomes: Sequence[tuple[str, Outcome]],
        remove: Sequence[Path] = (),
        counts: dict[str, int] | None = None,
    ) -> Made:
        """Returns the result. remove: folders that are deleted once the artifact is in place."""
        costs = [_provenance(outcome) for _, outcome in outcomes]
        stopped = "; ".join(f"{name}: {outcome.stopped}" for name, outcome in outcomes if outcome.steps and outcome.stopped)
        return Made(
            kind="adapter" if kind == "adapter" else "weights",
            notes=notes,
            write=write,
            steps=sum(outcome.steps for _, outcome in outcomes),
            stopped=stopped or None,
            processes=max(cost.processes for cost in costs),
            device_seconds=sum(cost.device_seconds for cost in costs),
            peak_memory_bytes=max(PeakMemory().peak, *(cost.peak_memory_bytes for cost in costs)),
            counts=counts or {},
            settings={
                f"{name} {key}": value
                for (name, _), cost in zip(outcomes, costs, strict=True)
                for key, value in cost.settings.items()
            },
            done=partial(_remove, remove),
        )


def trained(name: str, outcome: Outcome) -> str:
    """Describes a stage's training: `expert: 60 steps, peak learning rate 0.00059, layer 2`, or that it was done before."""
    found = _provenance(outcome).settings
    said = [f"{outcome.steps} steps" if outcome.steps else "done before"]
    said += [
        f"{key.replace('_', ' ').replace('learning rate', 'peak learning rate')} {value}"
        for key, value in found.items()
        if key.endswith(("learning_rate", "layer"))
    ]
    return f"{name}: {', '.join(said)}"


def artifact_files(artifact: Path) -> list[Path]:
    """Returns all files of an artifact except its manifest and card, which the new artifact has itself."""
    return [f for f in sorted(artifact.rglob("*")) if f.is_file() and f.name not in ("expunge.json", "README.md")]


def copy_artifact(artifact: Path, format_of: Path, folder: Path) -> None:
    """Copies a merged artifact into `folder`, by links where the file system can, with the format that the stages were
    trained in."""
    for file in artifact_files(artifact):
        target = folder / file.relative_to(artifact)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target)
        except OSError:
            shutil.copyfile(file, target)
    (folder / FORMAT_FILE).unlink(missing_ok=True)
    shutil.copyfile(format_of / FORMAT_FILE, folder / FORMAT_FILE)


def _provenance(outcome: Outcome) -> Provenance:
    return Provenance.model_validate(json.loads((outcome.folder / "provenance.json").read_text(encoding="utf-8")))


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
