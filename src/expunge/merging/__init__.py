"""Merges model weights and adapters in files larger than memory (`expunge merge`)."""

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
