"""Defines the records that stages exchange as JSON: scores, samples, provenance, and others. Imports no torch.

A score is a record, never a bare float: value, interval, count, direction and, where there is no value, the reason.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from expunge.errors import ExpungeError

Role = Literal["forget", "retain", "neutral", "control"]
"""The role of a task's examples in the request: to forget, to keep, neither, or of the kind of the forget set but never
trained on (control). It decides which direction is good, what may be quoted and what a report compares."""


def level(value: float | str | None) -> float | str | None:
    """Checks a level to stop at. Raises ValueError for a number that is no probability."""
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError("is a probability between 0 and 1, or never-seen")
    return value


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that torch, numpy and scikit-learn all accept."""


class Record(BaseModel):
    """Base of records: frozen and strict about fields, since a file with others is of another version or was edited."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


Cut = Literal["text", "answer", "prompt", "judged", "unknown", "control"]
"""What of a sample did not fit into the model: the end of a text that is scored, the end of an answer that the model wrote, the
beginning of a prompt (or of a text without one); what did not fit into the judge: the end of an answer; or what the tokenizer
does not know, or reads as control tokens: words of an answer or of the prompt."""
CUTS: dict[Cut, str] = {
    "text": "were read without the end of their answer, which did not fit",
    "answer": "were answered only as far as there was room",
    "prompt": "were read without their beginning, which did not fit",
    "judged": "were judged by the beginning of their answer, since the judge takes no more",
    "unknown": "have words that the tokenizer does not know and reads as one and the same token",
    "control": "hold a control token written out, which the tokenizer does not read as text",
}


class Score(Record):
    """One metric on one task, with a 95 % bootstrap interval over samples."""

    task: str
    """Name of the task, e.g. `forget`; scores over a whole suite have the task `suite`."""
    metric: str
    role: Role | None = None
    """The role of the task; null for scores over a whole suite."""
    value: float | None
    """The point estimate; null when it could not be computed, with the reason in `unscored`."""
    low: float | None = None
    """Lower end of the 95 % interval; null if there is none (a p-value, a single number)."""
    high: float | None = None
    n: int
    """Number of samples behind the value."""
    higher_is_better: bool | None = None
    """The direction of good on this task: knowledge is good on retain and bad on forget; null if neither is a goal."""
    unscored: str | None = None
    over: tuple[str, ...] = ()
    """For a mean over tasks: these, as `TASK/METRIC`; null for scores of a single task."""
    left_out: dict[str, int] = {}
    """Reason -> number of samples without a value, which the score is not of."""
    cut: dict[Cut, int] = {}
    """What was cut off -> number of samples, of those with a value."""

    def remarks(self) -> list[str]:
        """Returns sentences on what the value is not of, to be shown beside it."""
        whole = self.n + sum(self.left_out.values())
        left = [f"{count} of {whole} samples have no value: {reason}" for reason, count in self.left_out.items()]
        return [*left, *(f"{count} of {self.n} samples {CUTS[what]}" for what, count in self.cut.items())]

    @model_validator(mode="after")
    def _value_or_reason(self) -> "Score":
        if (self.value is None) == (self.unscored is None):
            raise ValueError(f"score {self.task}/{self.metric} needs a value or a reason in `unscored`, and not both")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(
                f"score {self.task}/{self.metric} is {self.value}; a number that cannot be computed is null with a reason"
            )
        return self


class Sample(Record):
    """One row of SUITE.samples.jsonl: the value of one metric for one example. Texts are there only when asked for."""

    task: str
    metric: str
    id: str
    """`Example.id`: a hash of the content, by which reports can refer to a sample without quoting it."""
    role: Role | None = None
    """The role of the task. A sample without one is treated as secret."""
    value: float | None
    unscored: str | None = None
    judged: tuple[float, ...] | None = None
    """The judge's numbers that the value was made from, one for each answer that it read; null where the value is its number."""
    cut: tuple[Cut, ...] | None = None
    """What of the example did not fit into the model, where this metric is concerned; null if all did."""
    text: dict[str, str] | None = None
    """`prompt`, `expected`, `generated`, `sampled_1` ...; only with show_forget_text, or if the text is not secret."""


class JudgeUsed(Record):
    """The judge of answers: a classifier, a list of words, another model."""

    settings: dict[str, Any]
    """Its kind and all its fields."""
    fingerprint: str | None = None
    """sha256 of the judging model (or source file); null if the settings are sufficient."""


class GuardUse(Record):
    """How often a guard judged a prompt while a model was scored, and how often it acted on one."""

    decided: int
    acted: int


class Evaluation(Record):
    """The content of SUITE.json."""

    suite: str
    artifact: str
    seconds: float
    scores: tuple[Score, ...]
    judges: tuple[JudgeUsed, ...] = ()
    """Scores of different judges must not be compared."""
    fingerprint: str | None = None
    """Hash over the model's weights and everything attached; null if unknown."""
    guard: GuardUse | None = None
    """Null without a guard. Tasks whose scores existed already are not counted again."""
    key: str | None = None
    """sha256 over what the scores depend on: code, model, format and settings, and each task's examples and metrics. Null if
    the model is unknown, or if another program read the data (lm-eval)."""

    def get(self, task: str, metric: str) -> Score | None:
        """Returns the score of a metric on a task, or None if the suite has none."""
        return next((s for s in self.scores if s.task == task and s.metric == metric), None)


class Inputs(Record):
    """The content of inputs.json: hashes of a run's inputs, written when its folder is made and compared before it is
    resumed."""

    base: str
    """Path or hub id of the start model."""
    base_sha256: str
    """Hash over its configuration and weight files."""
    tokenizer_sha256: str
    """Hash over the files of its tokenizer."""
    data: dict[str, str]
    """forget, retain, ..., refusals -> sha256 over the rows, in order."""
    counts: dict[str, int]
    """forget, retain, ... -> number of rows."""
    folder: str
    """Working directory of the command: relative paths in run.yaml start here."""
    run_sha256: str | None = None
    """Hash over run.yaml without the fields that only change its memory use; null in folders of older versions."""
    expunge: str | None = None
    """Version of expunge that began the run."""


class Gain(Record):
    """The recovery of an attack beyond the same attack on its control, with a 95 % interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Attack(Record):
    """The content of attacks/ATTACK.json."""

    attack: str
    artifact: str = ""
    """Path of the attacked model."""
    applicable: bool = True
    """False if the attack does not apply to this kind of artifact."""
    reason: str | None = None
    """Why it is not applicable, or why there is no gain."""
    budget: dict[str, Any] = {}
    """The attacker's steps, rows, queries, ..."""
    seconds: float = 0.0
    gain: Gain | None = None
    control: dict[str, Any] = {}
    """Result of the same attack with the same budget on a model, or on facts, without the knowledge."""
    scores: tuple[Score, ...] = ()
    """Scores after the attack."""
    trials: tuple[dict[str, Any], ...] = ()
    """One entry for each way that was tried (a wording, a step, a format, a trial of a sweep), with its result."""
    cost: dict[str, float] = {}
    """Queries, gradient steps and seconds of CPU time, of the attack and its controls together."""
    key: str | None = None
    """sha256 over what the result depends on: code, models, facts, budget and seed."""


class LadderRow(Record):
    """One entry of attacks/ladder.json: all attacks on one artifact, from the cheapest to the most expensive."""

    attack: str
    applicable: bool
    reason: str | None = None
    budget: dict[str, Any] = {}
    seconds: float = 0.0
    gain: Gain | None = None


class SelfCheck(Record):
    """Measurements of a run on a few fixed rows when it was done. It is not an evaluation: claims do not use it."""

    rows: dict[str, int]
    """forget, retain, holdout -> number of measured rows."""
    before: dict[str, float]
    """Values of the start model: forget, retain, holdout -> mean probability of an answer; retain_perplexity. 0 for guards."""
    after: dict[str, float]
    """Values of the result; for a guard the share of prompts that it acts on."""
    said: tuple[str, ...]
    """The sentences that the command printed."""


class Provenance(Record):
    """The content of provenance.json: the origin and the cost of a run."""

    expunge: str
    """Version of expunge."""
    base: str
    """Path or hub id of the model that the run started from."""
    base_sha256: str
    """Hash over the base model's configuration and weight files."""
    data: dict[str, str]
    """forget, retain, ... -> sha256 over the examples, in order."""
    counts: dict[str, int]
    """forget, retain, ... -> number of examples."""
    seed: int
    versions: dict[str, str]
    """python, torch, transformers, ..."""
    host: str
    """Operating system, processor kind and count; not the machine's name."""
    threads: int
    processes: int
    wall_seconds: float
    device_seconds: float
    """Seconds of processor or accelerator time, summed over processes."""
    peak_memory_bytes: int
    settings: dict[str, float | int | str | bool] = {}
    """Learning rate, steps and the like as they were, also where the run left them to expunge; empty without training."""
    stopped: str | None = None
    """Why training ended before its last planned step; null where it did not, or where there was no training."""
    self_check: SelfCheck | None = None
    """Null where it was turned off, and where there was nothing to compare (guards, fine-tuning, several processes)."""


def follow_umask(path: Path) -> None:
    """Gives a file (or everything in a folder) the permissions of a file made by plain `open`.

    safetensors makes its files readable by the owner only, so that a server of another user could not read them.
    """
    mask = os.umask(0)
    os.umask(mask)
    for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
        file.chmod(0o666 & ~mask | (file.stat().st_mode & 0o111 & ~mask))


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """Context manager that makes a folder and those above it; of these, the ones that are empty at the end are removed again."""
    made = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for place in made:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def write_text(path: Path, text: str) -> None:
    """Writes a temporary file and renames it, so that no reader sees half a file. Raises OSError that names the file."""
    write_together({path: text})


def write_together(texts: Mapping[Path, str]) -> None:
    """Writes files that belong together, such as scores and their samples: none is put in place before all are on the disk.

    A full disk leaves what was there before, and folders that were made for the files are removed again; after a kill, files
    are missing and never mixed with earlier ones. Raises OSError that names the file.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in texts}
    with ExitStack() as folders:
        for path in texts:
            folders.enter_context(folder_made(path.parent))
        try:
            for path, text in texts.items():
                _write_synced(path, temporary[path], text)
            for path in list(texts)[1:]:
                path.unlink(missing_ok=True)
            for path in texts:
                os.replace(temporary[path], path)
        finally:
            for file in temporary.values():
                file.unlink(missing_ok=True)


def _write_synced(path: Path, temporary: Path, text: str) -> None:
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def json_text(value: Record | dict[str, Any] | list[Any]) -> str:
    """Formats one JSON document, indented, without NaN."""
    plain = value.model_dump(mode="json") if isinstance(value, Record) else value
    return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Record | dict[str, Any] | list[Any]) -> None:
    """Writes one JSON document, atomically."""
    write_text(path, json_text(value))


def write_scores(path: Path, record: Record, samples: Iterable[Sample]) -> None:
    """Writes SUITE.json (or ATTACK.json) and SUITE.samples.jsonl. An earlier pair is replaced as a whole: scores never stand
    beside the samples of another model."""
    write_together({path.with_suffix(".samples.jsonl"): samples_text(samples), path: json_text(record)})


def samples_text(samples: Iterable[Sample]) -> str:
    """Formats samples as JSON lines."""
    return "".join(s.model_dump_json(exclude_none=True) + "\n" for s in samples)


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Writes SUITE.samples.jsonl alone."""
    write_text(path, samples_text(samples))


def read_samples(path: Path) -> Iterator[Sample]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield Sample.model_validate({"value": None} | json.loads(line))


def read_evaluation(path: Path) -> Evaluation:
    """Reads SUITE.json. Raises ExpungeError if it is not a scores file."""
    try:
        return Evaluation.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExpungeError(
            f"{path} is not a scores file of expunge ({str(error).splitlines()[0]}); write it with `expunge evaluate`"
        ) from error
