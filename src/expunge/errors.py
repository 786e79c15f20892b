"""Defines ExpungeError, the exception for errors that a user can correct."""

import difflib
import shutil
from collections.abc import Iterable


class ExpungeError(Exception):
    """An error that the user can correct: one sentence that says what, where and what to do.

    The command line prints it and exits with code 2. Raised before the work starts, nothing has been written; raised during the
    work, nothing is lost.
    """


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; its text names the command that resumes the work."""


class MissingData(ExpungeError):
    """A data file is missing. Callers add which files are needed, and in which layout."""


def reason(error: OSError) -> str:
    """Describes an error of a file or a disk: `FILE: No space left on device`. Of a folder that could not be copied, its first
    file is named."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        _, target, why = error.args[0][0]
        return f"{target}: {str(why).partition('] ')[2].partition(': ')[0] or why}"
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean 'npo'?)` for an unknown word, or "" if no known word is similar."""
    spelled = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), list(spelled), n=1, cutoff=0.5)
    return f" (did you mean '{spelled[close[0]]}'?)" if close else ""
