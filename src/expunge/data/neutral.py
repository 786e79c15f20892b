"""Chooses neutral texts, on which it is measured how much a run changes the model in general.

By default lines of WikiText's test set (arXiv 1609.07843), from the folder that EXPUNGE_DATA names.
"""

import os
from collections.abc import Sequence

from expunge.data.corpora.wikitext import read_wikitext
from expunge.data.example import Example
from expunge.data.read import read_examples
from expunge.errors import ExpungeError

TEXTS = 64
"""Number of texts, evenly spaced in the source."""
WORDS = 8
"""Shorter lines, such as headings, are left out while there are enough others."""


def neutral_texts(sources: Sequence[str] = ()) -> tuple[Example, ...]:
    """Reads the sources, or WikiText if none is given, and returns up to TEXTS of their rows.

    Raises ExpungeError if there is neither.
    """
    if sources:
        rows = tuple(example for source in sources for example in read_examples(source))
    else:
        place = os.environ.get("EXPUNGE_DATA")
        if not place:
            raise ExpungeError(
                "--disruption-budget is measured on neutral text: name some with --neutral FILE, or set EXPUNGE_DATA to a folder "
                "that holds WikiText"
            )
        rows = read_wikitext(place)
    long = tuple(row for row in rows if row.prompt is not None or len(row.response.split()) >= WORDS)
    chosen = long if len(long) >= min(TEXTS, len(rows)) else rows
    return chosen[:: max(1, len(chosen) // TEXTS)][:TEXTS]
