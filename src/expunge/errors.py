"""The one exception that a user is meant to read."""

import difflib
from collections.abc import Iterable


class ExpungeError(Exception):
    """Something the user can put right: one sentence that says what, where and what to do.

    The command line prints it and leaves with exit code 2; nothing has been written when it is raised
    before the work starts, and nothing is lost when it is raised during the work.
    """


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, and in its text the command that goes on."""


class MissingData(ExpungeError):
    """A data file is not there. Who knows what it is for says the rest: which files, in which layout."""


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'npo'?)` for an unknown word, or nothing when no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
