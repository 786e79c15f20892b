"""Makes rows of paraphrases, for runs that forget a fact in all its wordings."""

from dataclasses import replace
from itertools import accumulate, pairwise, zip_longest

from expunge.data.example import Example, Request
from expunge.errors import ExpungeError


def with_paraphrases(request: Request) -> Request:
    """Returns the request with each paraphrase of its forget and holdout rows as a separate row with the same prompt.

    A model that has learned a fact in several wordings, or that generalizes, still gives it in the others if only one is
    unlearned. The rows of each source stay together: first its own responses, then the first paraphrase of each row, then the
    second, so that evenly spaced rows are of all wordings. The new rows have neither paraphrases nor perturbed answers.

    Raises ExpungeError if no forget row has paraphrases.
    """
    if not any(row.paraphrases for row in request.forget):
        raise ExpungeError("none of the forget rows has paraphrases; give rows that have them, or leave out --paraphrases")
    ends = [0, *accumulate(request.forget_sources or (len(request.forget),))]
    parts = [_all_wordings(request.forget[start:end]) for start, end in pairwise(ends)]
    return replace(
        request,
        forget=tuple(row for part in parts for row in part),
        holdout=_all_wordings(request.holdout),
        forget_sources=tuple(map(len, parts)) if request.forget_sources else (),
    )


def _all_wordings(rows: tuple[Example, ...]) -> tuple[Example, ...]:
    others = ([replace(row, response=text, paraphrases=(), perturbed=()) for text in row.paraphrases] for row in rows)
    return (*rows, *(row for wording in zip_longest(*others) for row in wording if row is not None))
