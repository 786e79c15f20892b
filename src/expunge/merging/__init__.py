"""Weight arithmetic over files larger than memory: `expunge merge`."""

from expunge.merging.factor_merge import merge_adapters
from expunge.merging.factor_report import AdapterResult, ModuleReport
from expunge.merging.plan import Request
from expunge.merging.report import MergeResult, TensorReport
from expunge.merging.run import dry_run, execute, make_request, merge

__all__ = [
    "AdapterResult",
    "MergeResult",
    "ModuleReport",
    "Request",
    "TensorReport",
    "dry_run",
    "execute",
    "make_request",
    "merge",
    "merge_adapters",
]
