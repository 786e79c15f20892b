"""Makes the lab: an invented world in which exact retraining is cheap, so that every method can be compared with it.

`write_data` makes the data only, `build` also the models.
"""

from typing import TYPE_CHECKING

from expunge.lab.layout import write_data
from expunge.lab.rude_words import RUDE_WORDS
from expunge.late import late

if TYPE_CHECKING:
    from expunge.lab.building import build

__all__ = ["RUDE_WORDS", "build", "write_data"]

__getattr__ = late(__name__, {"build": "expunge.lab.building"})
