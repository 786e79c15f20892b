"""Makes the lab: an invented world in which exact retraining is cheap, so that every method can be compared with it.

`write_data` makes the data only, `build` also the models.
"""

from typing import TYPE_CHECKING, Any

from expunge.lab.layout import write_data
from expunge.lab.rude_words import RUDE_WORDS

if TYPE_CHECKING:
    from expunge.lab.building import build

__all__ = ["RUDE_WORDS", "build", "write_data"]


def __getattr__(name: str) -> Any:
    """Imports `build` on first use, since it needs torch and the data does not."""
    if name == "build":
        from expunge.lab.building import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
