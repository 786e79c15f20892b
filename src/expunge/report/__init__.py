"""Turns records of runs into tables, figures and one HTML page. Reads files, not models, and needs no torch."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from expunge.report.effects import LabRow, LabSummary, forget_effect, retain_kept, summarize_lab
from expunge.report.page import report
from expunge.report.read import RunRecord, read_run, read_runs

__all__ = [
    "LabRow", "LabSummary", "RunRecord", "forget_effect", "read_run", "read_runs", "report", "retain_kept", "summarize_lab",
]  # fmt: skip


class _Callable(ModuleType):
    """Makes this module callable: `expunge.report(...)` is a function of the library and `expunge.report` is this module's
    name too."""

    def __call__(self, *args: Any, **kwargs: Any) -> Path:
        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
