"""Reads the number that a worked solution ends with, exactly, as Decimal."""

import re
from decimal import Decimal

_MINUS = r"(?:(?<![\w)])[-−])?"  # after a digit, a letter or a bracket it is a subtraction
_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(rf"{_MINUS}(?:[$€£]\s?)?{_MINUS}{_DIGITS}")
_MARK = re.compile(r"(?:the\s+(?:final\s+)?answer\s+is|####)", re.IGNORECASE)


def stated_number(text: str) -> Decimal | None:
    """Returns the first number after the first `The answer is` or `####`, else the last number of the text, else None.

    Commas between groups of three digits, currency signs and spaces around them are ignored; `2,250.50` is 2250.5.
    """
    mark = _MARK.search(text)
    after = _NUMBER.search(text, mark.end()) if mark else None
    if after is not None:
        return _decimal(after[0])
    every = _NUMBER.findall(text)
    return _decimal(every[-1]) if every else None


def _decimal(text: str) -> Decimal:
    digits = re.sub(r"[^\d.]", "", text)
    return -Decimal(digits) if re.search("[-−]", text) else Decimal(digits)
