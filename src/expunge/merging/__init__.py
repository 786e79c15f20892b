"""Merges model weights and adapters in files larger than memory (`expunge merge`)."""

from typing import TYPE_CHECKING

from expunge.late import late

if TYPE_CHECKING:
    from expunge.merging.factor_merge import merge_adapters
    from expunge.merging.factor_report import AdapterResult, ModuleReport
    from expunge.merging.plan import MergeRequest
    from expunge.merging.report import MergeResult, TensorReport
    from expunge.merging.run import dry_run, execute, make_request, merge

__all__ = [
    "AdapterResult",
    "MergeRequest",
    "MergeResult",
    "ModuleReport",
    "TensorReport",
    "dry_run",
    "execute",
    "make_request",
    "merge",
    "merge_adapters",
]

__getattr__ = late(
    __name__,
    {
        "AdapterResult": "expunge.merging.factor_report",
        "MergeRequest": "expunge.merging.plan",
        "MergeResult": "expunge.merging.report",
        "ModuleReport": "expunge.merging.factor_report",
        "TensorReport": "expunge.merging.report",
        "dry_run": "expunge.merging.run",
        "execute": "expunge.merging.run",
        "make_request": "expunge.merging.run",
        "merge": "expunge.merging.run",
        "merge_adapters": "expunge.merging.factor_merge",
    },
)
