"""Reads the folder of a run into a RunRecord. Errors name the broken file."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from expunge.described import Described
from expunge.errors import ExpungeError
from expunge.records import Attack, Evaluation, Provenance, Record, Sample, Score
from expunge.report.analysis import Analysis


class Lenient(Described):
    """Base class for files of other stages: the report reads what it shows and ignores other fields."""

    model_config = ConfigDict(frozen=True, extra="ignore")


LOGS = ("metrics.jsonl", "expert/metrics.jsonl", "acquisition/metrics.jsonl")
"""Where a run's metrics.jsonl is: a negated model was trained in a subfolder."""


class Step(Lenient):
    """One line of metrics.jsonl."""

    step: int
    loss: float | None
    parts: dict[str, float | None] = Field(default_factory=dict)
    """The terms of the loss, `forget` and `retain` among them."""


class Artifact(Lenient):
    """artifact/expunge.json. Its claim is not read: claims are derived from records (`claims`)."""

    kind: Literal["weights", "adapter", "guard"]
    method: dict[str, Any]
    """`name` and the fields of the method."""
    family: str
    files: dict[str, str] = Field(default_factory=dict)
    """Relative path -> sha256."""
    base: dict[str, Any] = Field(default_factory=dict)


class Calibration(Lenient):
    """artifact/calibration.json: distances of held-out queries from a guard's box; up to 1 they are closed."""

    forget: tuple[float, ...] = Field(min_length=1)
    retain: tuple[float, ...] = Field(min_length=1)


class Merge(Lenient):
    """merge.json of a run whose parts were merged."""

    method: str
    models: tuple[str, ...]
    """The parts' artifacts, in the order of the merge."""
    elements: int
    """Number of weights of one model."""
    changed_elements: tuple[int, ...]
    """For each part: weights in tensors that differ from the base."""
    kept: tuple[int, ...] | None = None
    """For each part: differences that were kept, if the method trims."""
    outvoted: int = 0
    change: float
    """Norm of the change relative to the norm of the changed tensors."""


class _Index(NamedTuple):
    """One suite's samples, indexed."""

    source: tuple[Sample, ...]
    values: dict[tuple[str, str], dict[str, float]]
    """(task, metric) -> sample id -> value."""
    ids: dict[str, set[str]]
    """task -> ids of all its samples, scored or not."""


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
    """For a guard that decides by a threshold."""
    analysis: Analysis | None = None
    """For a probe, in the run's folder or in a folder of its own."""
    parts: tuple["RunRecord", ...] = ()
    """For a run that unlearned the parts of its forget set separately, in the order of the merge."""
    merge: Merge | None = None
    _indexed: dict[str, _Index] = PrivateAttr(default_factory=dict)

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
        """Returns sample id -> value, without samples that have none."""
        return self._index(suite).values.get((task, metric), {})

    def ids(self, suite: str, task: str) -> set[str]:
        """Returns the ids of the samples that a task was scored on: hashes of their content."""
        return self._index(suite).ids.get(task, set())

    def _index(self, suite: str) -> _Index:
        rows = self.samples.get(suite, ())
        found = self._indexed.get(suite)
        if found is None or found.source is not rows:
            found = self._indexed[suite] = _Index(rows, {}, {})
            for s in rows:
                found.ids.setdefault(s.task, set()).add(s.id)
                if s.value is not None:
                    found.values.setdefault((s.task, s.metric), {})[s.id] = s.value
        return found


M = TypeVar("M", bound=BaseModel)

REPAIR = "write it again with the command that made it, or leave its folder out of the report"


def _read(path: Path, model: type[M]) -> M:
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExpungeError(f"{path} cannot be read as {model.__name__.lower()} ({_reason(error)}); {REPAIR}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        return f"{place + ': ' if place else ''}{first['msg']}"
    return str(error).splitlines()[0]


def _read_lines(path: Path, model: type[M]) -> tuple[M, ...]:
    """Reads rows of a JSONL file. A last line without a newline was cut off by a kill and is ignored."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ExpungeError(f"{path} cannot be read ({_reason(error)}); {REPAIR}") from error
    whole = text[: text.rfind("\n") + 1]
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append(model.model_validate({"value": None} | row if model is Sample else row))
        except (TypeError, ValueError) as error:
            raise ExpungeError(
                f"{path}, line {number}, cannot be read as {model.__name__.lower()} ({_reason(error)}); {REPAIR}"
            ) from error
    return tuple(rows)


def read_run(folder: Path, name: str | None = None) -> RunRecord:
    """Reads one run; a folder that only `expunge evaluate` wrote is a run without training. Raises ExpungeError if the folder
    holds no run, or a broken file."""
    if not folder.is_dir():
        raise ExpungeError(f"{folder} is not a folder; give a run's, as `expunge unlearn` or `expunge evaluate` wrote it")
    evaluated = folder / "evaluation" if (folder / "evaluation").is_dir() else folder
    samples = {p.name.removesuffix(".samples.jsonl"): p for p in sorted(evaluated.glob("*.samples.jsonl"))}
    if evaluated == folder:
        suites = [folder / f"{suite}.json" for suite in samples if (folder / f"{suite}.json").is_file()]
    else:
        suites = sorted(evaluated.glob("*.json"))
    artifact, provenance, config, calibration, merge, analysis = (
        folder / part
        for part in (
            "artifact/expunge.json", "provenance.json", "run.yaml", "artifact/calibration.json", "merge.json", "analysis.json",
        )
    )  # fmt: skip
    metrics = next((log for log in (folder / name for name in LOGS) if log.is_file()), None)
    if not suites and not any(file.is_file() for file in (artifact, provenance, analysis)) and metrics is None:
        raise ExpungeError(
            f"{folder} holds no run (it has neither evaluation/SUITE.json nor artifact/expunge.json nor metrics.jsonl); give the "
            "--out of `expunge unlearn` or `expunge evaluate`"
        )
    by_step = {s.step: s for s in _read_lines(metrics, Step)} if metrics else {}
    merged = _read(merge, Merge) if merge.is_file() and (folder / "parts").is_dir() else None
    return RunRecord(
        name=name or label(folder),
        folder=folder,
        artifact=_read(artifact, Artifact) if artifact.is_file() else None,
        provenance=_read(provenance, Provenance) if provenance.is_file() else None,
        config=config.read_text(encoding="utf-8") if config.is_file() else None,
        steps=tuple(by_step[step] for step in sorted(by_step)),
        evaluations=tuple(_read(path, Evaluation) for path in suites),
        samples={suite: _read_lines(path, Sample) for suite, path in samples.items()},
        attacks=tuple(_read(p, Attack) for p in sorted(folder.glob("attacks/*.json")) if p.name != "ladder.json"),
        calibration=_read(calibration, Calibration) if calibration.is_file() else None,
        analysis=_read(analysis, Analysis) if analysis.is_file() else None,
        parts=_read_parts(folder, merged),
        merge=merged,
    )


def label(folder: Path) -> str:
    """Returns the name of a model: its folder's name, or that of the run that contains a folder of scores."""
    return _around(folder).name


def _around(folder: Path) -> Path:
    path = folder.resolve()
    return path.parent if path.name == "evaluation" else path


def _read_parts(folder: Path, merge: Merge | None) -> tuple[RunRecord, ...]:
    """Reads parts/VALUE in the order of the merge; a part that had not begun is left out."""
    found = {p.name: p for p in sorted((folder / "parts").glob("*")) if _begun(p)}
    merged = [name for model in (merge.models if merge else ()) if (name := Path(model).parent.name) in found]
    return tuple(read_run(found[name]) for name in dict.fromkeys([*merged, *found]))


def _begun(part: Path) -> bool:
    return any((part / file).is_file() for file in ("provenance.json", *LOGS))


def read_runs(folders: Sequence[Path], taken: Collection[str] = ()) -> list[RunRecord]:
    """Reads several runs; folders with the same name, or one that is `taken`, are distinguished by their parent folders.
    Raises ExpungeError for a run that is given twice."""
    paths = [_around(folder) for folder in folders]
    if twice := next((p for p in paths if paths.count(p) > 1), None):
        raise ExpungeError(f"{twice} is given twice; name each run once")
    names, depth = [p.name for p in paths], 1
    while doubled := {n for n in names if names.count(n) > 1 or n in taken}:
        depth += 1
        names = ["/".join(p.parts[-depth:]) if n in doubled else n for n, p in zip(names, paths, strict=True)]
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
