"""The lab: an invented world in which exact retraining is cheap, so that every method can be held against it.

`write_data` makes the data alone, `build` the models too; `is_rude` is the judge of rude replies.
"""

from expunge.lab.layout import write_data
from expunge.lab.rule import RUDE_WORDS, is_rude

__all__ = ["RUDE_WORDS", "is_rude", "write_data"]
