"""Keeps the journal of a merge, from which it can be resumed after a kill.

    .NAME.partial/  journal.jsonl   the plan's fingerprint and the findings of the first passes; then one line per finished tensor
                    weights/        output files at their full size from the start, written in place
                    artifact/ ...   what becomes OUT by one rename when everything is there

A tensor's line is written after its bytes have reached the disk, in batches: a resumed run relies on the journal and recomputes
what is not in it.
"""

import json
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from expunge.errors import ExpungeError
from expunge.merging.positions import Files
from expunge.merging.report import TensorReport
from expunge.methods.editing.base import Cut

FLUSH_BYTES = 512 * 2**20
FLUSH_SECONDS = 10.0

JOURNAL = "journal.jsonl"


class Findings(NamedTuple):
    """The findings of the passes before the merge."""

    changed: dict[str, tuple[int, ...]]
    cuts: dict[int, Cut] | None


class Journal:
    """Appends lines; safe from several threads."""

    def __init__(self, folder: Path, files: Files) -> None:
        self.path, self.files = folder / JOURNAL, files
        self.done: dict[str, TensorReport | None] = {}
        """Finished tensors; None for those that were copied."""
        self._pending: list[tuple[str, TensorReport | None]] = []
        self._touched: set[Path] = set()
        self._bytes, self._flushed = 0, time.monotonic()
        self._lock = threading.Lock()

    def begin(self, fingerprint: str, findings: Findings) -> None:
        """Writes the first line, once the output files exist at their full size."""
        cuts = None if findings.cuts is None else {model: list(cut) for model, cut in findings.cuts.items()}
        self._append({"plan": fingerprint, "changed": findings.changed, "cuts": cuts})

    def read(self, fingerprint: str) -> Findings | None:
        """Returns what an interrupted run left, or None. Drops a line that the kill cut short. Raises ExpungeError for the
        journal of another merge."""
        if not self.path.is_file():
            return None
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
        if not lines:
            return None
        if lines[0]["plan"] != fingerprint:
            raise ExpungeError(
                f"{self.path.parent} is of another merge (its settings or an input file differ); "
                "repeat that one, or start this one with --overwrite"
            )
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")
        for line in lines[1:]:
            self.done[line["tensor"]] = TensorReport.model_validate(line["report"]) if line["report"] else None
        cuts = lines[0]["cuts"]
        return Findings(
            {name: tuple(models) for name, models in lines[0]["changed"].items()},
            None if cuts is None else {int(model): Cut(*cut) for model, cut in cuts.items()},
        )

    def add(self, name: str, report: TensorReport | None, nbytes: int, written: set[Path]) -> None:
        with self._lock:
            self._pending.append((name, report))
            self._touched |= written
            self._bytes += nbytes
            if self._bytes >= FLUSH_BYTES or time.monotonic() - self._flushed >= FLUSH_SECONDS:
                self._flush()

    def flush(self) -> None:
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        self.files.flush(self._touched)
        for name, report in self._pending:
            self._append({"tensor": name, "report": None if report is None else report.model_dump(mode="json")})
            self.done[name] = report
        self._pending, self._touched, self._bytes, self._flushed = [], set(), 0, time.monotonic()

    def _append(self, line: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
