"""Makes a language model forget, and measures whether it did."""

from typing import TYPE_CHECKING

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
from expunge.late import late

if TYPE_CHECKING:
    from expunge.api import attack, finetune, unlearn
    from expunge.artifact import verify
    from expunge.data.format import Format
    from expunge.evaluation.run import evaluate
    from expunge.loading import load
    from expunge.report import report
    from expunge.training.settings import Training

__getattr__ = late(
    __name__,
    {
        "Format": "expunge.data.format",
        "Training": "expunge.training.settings",
        "attack": "expunge.api",
        "evaluate": "expunge.evaluation.run",
        "finetune": "expunge.api",
        "load": "expunge.loading",
        "report": "expunge.report",
        "unlearn": "expunge.api",
        "verify": "expunge.artifact",
    },
)
