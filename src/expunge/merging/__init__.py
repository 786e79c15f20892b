"""Weight arithmetic over files larger than memory: `expunge merge`."""

from expunge.merging.plan import Request
from expunge.merging.report import MergeResult, TensorReport
from expunge.merging.run import dry_run, execute, make_request, merge

__all__ = ["MergeResult", "Request", "TensorReport", "dry_run", "execute", "make_request", "merge"]
