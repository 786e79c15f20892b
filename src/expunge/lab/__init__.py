"""The lab: an invented world in which exact retraining is cheap, so that every method can be held against it.

`write_data` makes the data alone, `build` the models too; `is_rude` is the judge of rude replies.
"""

from typing import TYPE_CHECKING, Any

from expunge.lab.layout import write_data
from expunge.lab.rule import RUDE_WORDS, is_rude

if TYPE_CHECKING:
    from expunge.lab.building import build

__all__ = ["RUDE_WORDS", "build", "is_rude", "write_data"]


def __getattr__(name: str) -> Any:
    """`build` needs torch, and the data and the rule do not."""
    if name == "build":
        from expunge.lab.building import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
