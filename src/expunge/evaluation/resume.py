"""Saves the samples of finished tasks of an unfinished evaluation, with a key of everything that they depend on."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import expunge
from expunge.records import Sample, write_json

NO_PART_OF_A_SCORE = ("cli", "report", "sweep.py", "serve")
LIBRARIES = ("torch", "transformers", "peft", "tokenizers")


@cache
def code_version() -> str:
    """Computes a sha256 over the source files and libraries that a score depends on.

    Includes all of expunge except for modules that only call the evaluation or show its results.
    """
    root = Path(expunge.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        if file.relative_to(root).parts[0] not in NO_PART_OF_A_SCORE:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library} {version(library)}".encode())
    return digest.hexdigest()


class Finished:
    """Samples of finished tasks in `folder`, one file each; deleted when the evaluation is complete.

    A file is used only if its key is the same: the code, the model, the format and the settings in `key`, and the task's own
    settings (`Task.settings`). Without a folder or a key (if the model is unknown) nothing is saved.
    """

    def __init__(self, folder: Path | None, key: Sequence[str] | None) -> None:
        self.folder = folder if key is not None else None
        self.key = list(key or ())

    def get(self, task: str, settings: Sequence[Any]) -> list[Sample] | None:
        """Returns the samples of the task of that name, if it was finished before with these settings."""
        if self.folder is None or not self._file(task).is_file():
            return None
        found = json.loads(self._file(task).read_text(encoding="utf-8"))
        if found["key"] != self._key(settings):
            return None
        return [Sample.model_validate(row) for row in found["samples"]]

    def put(self, task: str, settings: Sequence[Any], samples: Sequence[Sample]) -> None:
        """Saves the samples of a task."""
        if self.folder is not None:
            rows = [sample.model_dump(mode="json") for sample in samples]
            write_json(self._file(task), {"key": self._key(settings), "samples": rows})

    def key_of(self, tasks: Sequence[Sequence[Any]]) -> str | None:
        """Computes what a whole evaluation of tasks with these settings depends on; None if the model is unknown."""
        if not self.key:
            return None
        return hashlib.sha256("".join(map(self._key, tasks)).encode()).hexdigest()

    def clear(self) -> None:
        """Deletes the files, since the evaluation is complete."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, task: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{task}.json"

    def _key(self, settings: Sequence[Any]) -> str:
        return hashlib.sha256(json.dumps([code_version(), *self.key, *settings]).encode()).hexdigest()
