"""Makes a language model forget, and measures whether it did."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "ExpungeError",
    "Format",
    "Training",
    "__version__",
    "attack",
    "evaluate",
    "finetune",
    "load",
    "report",
    "unlearn",
    "verify",
]

from expunge.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.api import attack, evaluate, finetune, load, report, unlearn, verify
    from expunge.data.format import Format
    from expunge.training.settings import Training

_HOMES = {"Format": "expunge.data.format", "Training": "expunge.training.settings"}


def __getattr__(name: str) -> Any:
    """Imports public names on first use: torch alone takes seconds, and `expunge --help` does not need it."""
    if name not in __all__:
        raise AttributeError(f"module 'expunge' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "expunge.api")), name)
