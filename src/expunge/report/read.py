"""A run folder -> a RunRecord. Every broken file names itself; nothing is guessed from the names of methods."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from expunge.errors import ExpungeError
from expunge.records import Evaluation, Provenance, Record, Sample, Score


class Lenient(BaseModel):
    """Files that other stages own and check: the report reads what it shows and passes over the rest."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Step(Lenient):
    """One line of metrics.jsonl."""

    step: int
    loss: float | None
    parts: dict[str, float | None] = Field(default_factory=dict)
    """The terms of the loss, `forget` and `retain` among them."""


class Artifact(Lenient):
    """artifact/expunge.json."""

    kind: Literal["weights", "adapter", "guard"]
    method: dict[str, Any]
    """`name` and the fields of the method."""
    family: str
    claim: Literal["L0", "L1", "L2", "L3"]
    base: dict[str, Any] = Field(default_factory=dict)


class Attack(Lenient):
    """attacks/ATTACK.json."""

    attack: str
    budget: dict[str, Any] = Field(default_factory=dict)
    scores: tuple[Score, ...]


class Calibration(Lenient):
    """artifact/calibration.json: how far held-out queries are from a guard's box; up to 1 they are closed."""

    forget: tuple[float, ...] = Field(min_length=1)
    retain: tuple[float, ...] = Field(min_length=1)


class RunRecord(Record):
    """Everything a report needs of one run, or of a model that was only evaluated (original, gold)."""

    name: str
    """The folder's name; the label in tables and figures."""
    folder: Path
    artifact: Artifact | None = None
    provenance: Provenance | None = None
    config: str | None = None
    """run.yaml as text."""
    steps: tuple[Step, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    """By name of the suite."""
    samples: dict[str, tuple[Sample, ...]] = Field(default_factory=dict)
    """suite -> rows of SUITE.samples.jsonl."""
    attacks: tuple[Attack, ...] = ()
    calibration: Calibration | None = None
    """Of a guard that decides by a threshold."""

    @property
    def method(self) -> str | None:
        return str(self.artifact.method.get("name", self.name)) if self.artifact else None

    @property
    def family(self) -> str | None:
        return self.artifact.family if self.artifact else None

    def evaluation(self, suite: str) -> Evaluation | None:
        return next((e for e in self.evaluations if e.suite == suite), None)

    def score(self, suite: str, task: str, metric: str) -> Score | None:
        evaluation = self.evaluation(suite)
        return evaluation.get(task, metric) if evaluation else None

    def values(self, suite: str, task: str, metric: str) -> dict[str, float]:
        """Sample id -> value, without the samples that have none."""
        rows = self.samples.get(suite, ())
        return {s.id: s.value for s in rows if s.task == task and s.metric == metric and s.value is not None}


M = TypeVar("M", bound=BaseModel)


def _read(path: Path, model: type[M]) -> M:
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExpungeError(f"{path} cannot be read as {model.__name__.lower()}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        return f"{place + ': ' if place else ''}{first['msg']}"
    return str(error).splitlines()[0]


def _read_lines(path: Path, model: type[M]) -> tuple[M, ...]:
    """Rows of a JSONL file. A last line without its newline was cut off by a kill and is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ExpungeError(f"{path} cannot be read: {_reason(error)}") from error
    whole = text[: text.rfind("\n") + 1]
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append(model.model_validate({"value": None} | row if model is Sample else row))
        except (TypeError, ValueError) as error:
            raise ExpungeError(f"{path}, line {number}, cannot be read as {model.__name__.lower()}: {_reason(error)}") from error
    return tuple(rows)


def read_run(folder: Path, name: str | None = None) -> RunRecord:
    """Reads one run; a folder that `expunge evaluate` alone wrote is a run without training."""
    if not folder.is_dir():
        raise ExpungeError(f"{folder} is not a folder; give a run's, as `expunge unlearn` or `expunge evaluate` wrote it")
    evaluated = folder / "evaluation" if (folder / "evaluation").is_dir() else folder
    samples = {p.name.removesuffix(".samples.jsonl"): p for p in sorted(evaluated.glob("*.samples.jsonl"))}
    if evaluated == folder:
        suites = [folder / f"{suite}.json" for suite in samples if (folder / f"{suite}.json").is_file()]
    else:
        suites = sorted(evaluated.glob("*.json"))
    artifact, provenance, config, metrics, calibration = (
        folder / part
        for part in ("artifact/expunge.json", "provenance.json", "run.yaml", "metrics.jsonl", "artifact/calibration.json")
    )
    if not suites and not artifact.is_file() and not metrics.is_file():
        raise ExpungeError(
            f"{folder} holds no run: it has neither evaluation/SUITE.json nor artifact/expunge.json nor metrics.jsonl"
        )
    by_step = {s.step: s for s in _read_lines(metrics, Step)} if metrics.is_file() else {}
    return RunRecord(
        name=name or folder.resolve().name,
        folder=folder,
        artifact=_read(artifact, Artifact) if artifact.is_file() else None,
        provenance=_read(provenance, Provenance) if provenance.is_file() else None,
        config=config.read_text(encoding="utf-8") if config.is_file() else None,
        steps=tuple(by_step[step] for step in sorted(by_step)),
        evaluations=tuple(_read(path, Evaluation) for path in suites),
        samples={suite: _read_lines(path, Sample) for suite, path in samples.items()},
        attacks=tuple(_read(path, Attack) for path in sorted(folder.glob("attacks/*.json"))),
        calibration=_read(calibration, Calibration) if calibration.is_file() else None,
    )


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Several runs; two folders of one name are told apart by the folders that they lie in."""
    paths = [folder.resolve() for folder in folders]
    if twice := next((p for p in paths if paths.count(p) > 1), None):
        raise ExpungeError(f"{twice} is given twice; name each run once")
    names, depth = [p.name for p in paths], 1
    while len(set(names)) < len(names):
        depth += 1
        names = [n if names.count(n) == 1 else "/".join(p.parts[-depth:]) for n, p in zip(names, paths, strict=True)]
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
