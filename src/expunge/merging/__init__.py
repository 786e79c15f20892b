"""Merges model weights and adapters in files larger than memory (`expunge merge`)."""

from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "AdapterResult": "factor_report",
    "MergeRequest": "plan",
    "MergeResult": "report",
    "ModuleReport": "factor_report",
    "TensorReport": "report",
    "dry_run": "run",
    "execute": "run",
    "make_request": "run",
    "merge": "run",
    "merge_adapters": "factor_merge",
}


def __getattr__(name: str) -> Any:
    """Imports public names on first use: adapters are merged without torch, which takes seconds to import."""
    if name not in _HOMES:
        raise AttributeError(f"module 'expunge.merging' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"expunge.merging.{_HOMES[name]}"), name)
