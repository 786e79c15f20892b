"""What the stages hand to each other on disk: scores, samples, provenance. JSON in, JSON out; no torch.

A score is a record, never a bare float: value, interval, count, direction and, where there is no value, the reason.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from expunge.errors import ExpungeError

Role = Literal["forget", "retain", "neutral", "control"]
"""What the examples of a task are to the request: what was to be forgotten, what was to be kept, neither, or examples of the kind
of the forget set that no model was ever trained on. It decides which direction is good, what may be quoted and what a report
compares."""


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of anything drawn: what torch, numpy and scikit-learn all take."""


class Record(BaseModel):
    """Frozen, and strict about its fields: a file with another field is from another version or by another hand."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Score(Record):
    """One metric on one task, with a 95 % bootstrap interval over samples."""

    task: str
    """What was asked, e.g. `forget`; scores over a whole suite have the task `suite`."""
    metric: str
    role: Role | None = None
    """The role of the task; null for scores over a whole suite."""
    value: float | None
    """The point estimate; null when it could not be computed, with the reason in `unscored`."""
    low: float | None = None
    """Lower end of the 95 % interval; null when there is none (a p-value, a single number)."""
    high: float | None = None
    n: int
    """Number of samples that the value is taken over."""
    higher_is_better: bool | None = None
    """The direction of good *on this task*: knowing is good on retain and bad on forget; null when neither is a goal."""
    unscored: str | None = None
    over: tuple[str, ...] = ()
    """Of a mean over tasks: which, `TASK/METRIC` each; scores of a single task have none."""

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
    """`Example.id`: a hash of the content, so that reports can point at a sample without quoting it."""
    role: Role | None = None
    """The role of the task. A sample without one is treated as secret."""
    value: float | None
    unscored: str | None = None
    text: dict[str, str] | None = None
    """`prompt`, `expected`, `generated`, `sampled_1` ...; only with show_forget_text, or where the text is not secret (lab)."""


class JudgeUsed(Record):
    """Who said of an answer what it is: a classifier, a list of words, another model."""

    settings: dict[str, Any]
    """Its kind and all its fields."""
    fingerprint: str | None = None
    """sha256 of the model (or the source file) that judged; null where the settings say it all."""


class GuardUse(Record):
    """How often a guard decided about a prompt while a model was scored, and how often it acted on one."""

    decided: int
    acted: int


class Evaluation(Record):
    """SUITE.json."""

    suite: str
    artifact: str
    seconds: float
    scores: tuple[Score, ...]
    judges: tuple[JudgeUsed, ...] = ()
    """Scores of another judge are other scores: never compare them."""
    fingerprint: str | None = None
    """What the model was: a hash over its weights and whatever was attached. Null where nobody said it."""
    guard: GuardUse | None = None
    """Null where no guard was attached. Tasks whose scores were there already are not counted again."""
    key: str | None = None
    """sha256 over what the scores depend on: code, model, format and settings, and each task's examples and metrics. Null where
    nobody said what the model is, and where another program read the data (lm-eval)."""

    def get(self, task: str, metric: str) -> Score | None:
        """The score of a metric on a task, or nothing when the suite did not ask for it."""
        return next((s for s in self.scores if s.task == task and s.metric == metric), None)


class Inputs(Record):
    """inputs.json: what a run was begun with, by content. Written when its folder is made, compared before anything goes on."""

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


class Gain(Record):
    """What an attack brought back beyond the same attack on its control, with a 95 % interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Attack(Record):
    """attacks/ATTACK.json."""

    attack: str
    artifact: str = ""
    """Path of what was attacked."""
    applicable: bool = True
    """False where the attack has nothing to hold on to in this kind of artifact."""
    reason: str | None = None
    """Why it is not applicable, or why there is no gain."""
    budget: dict[str, Any] = {}
    """Steps, rows, queries ...: what the attacker was allowed."""
    seconds: float = 0.0
    gain: Gain | None = None
    control: dict[str, Any] = {}
    """What the same attack with the same budget does to a model or to facts that hold nothing to bring back."""
    scores: tuple[Score, ...] = ()
    """After the attack."""
    trials: tuple[dict[str, Any], ...] = ()
    """One entry for each way that was tried (a wording, a step, a format, a trial of a sweep), with what came out."""
    cost: dict[str, float] = {}
    """Queries, gradient steps, seconds of processor time: of the attack and its controls together."""
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
    """What a run measured of itself when it was done, on a few fixed rows. No evaluation: claims do not rest on it."""

    rows: dict[str, int]
    """forget, retain, holdout -> rows that were looked at."""
    before: dict[str, float]
    """Of the start model. forget, retain, holdout -> mean probability of an answer; retain_perplexity. Of a guard: 0."""
    after: dict[str, float]
    """Of what was made. Of a guard: the share of prompts that it acts on."""
    said: tuple[str, ...]
    """The sentences that the command printed."""


class Provenance(Record):
    """provenance.json: where a run came from and what it took."""

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
    stopped: str | None = None
    """Why training ended before its last planned step; null where it did not, or where there was no training."""
    self_check: SelfCheck | None = None
    """Null where it was turned off, and where there was nothing to compare (guards, fine-tuning, several processes)."""


def follow_umask(path: Path) -> None:
    """Gives a file (or everything in a folder) the permissions that a plain `open` would have given it.

    safetensors writes its files for the owner alone, so that a server of another user could not read them.
    """
    mask = os.umask(0)
    os.umask(mask)
    for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
        file.chmod(0o666 & ~mask | (file.stat().st_mode & 0o111 & ~mask))


def write_text(path: Path, text: str) -> None:
    """Writes beside and renames, so that a reader or a crash never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Record | dict[str, Any] | list[Any]) -> None:
    """One JSON document, indented, no NaN, atomically."""
    plain = value.model_dump(mode="json") if isinstance(value, Record) else value
    write_text(path, json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """SUITE.samples.jsonl, atomically."""
    write_text(path, "".join(s.model_dump_json(exclude_none=True) + "\n" for s in samples))


def read_samples(path: Path) -> Iterator[Sample]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield Sample.model_validate({"value": None} | json.loads(line))


def read_evaluation(path: Path) -> Evaluation:
    try:
        return Evaluation.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExpungeError(
            f"{path} is not a scores file of expunge ({str(error).splitlines()[0]}); write it with `expunge evaluate`"
        ) from error
