"""Reads the sources given on the command line into examples and requests, and checks every row before a model is loaded.

A source is a file, a folder, a hub id, or a set of a corpus that this library knows (`expunge.data.corpora`), and conditions in
brackets may follow it: `toxigen/toxigen-data:annotated/train[severity > 3]`.
"""

import re
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from expunge.data.corpora import corpus_set
from expunge.data.example import Example, Request
from expunge.data.files import Source, each_row, read_lines
from expunge.data.row import to_examples
from expunge.data.where import choose, rows_where
from expunge.errors import ExpungeError, MissingData

_CONDITIONS = re.compile(r"(?P<source>.*[^\]])(?P<conditions>(\[[^\[\]]+\])+)")


def read_examples(source: Source, *, columns: Mapping[str, str] | None = None, split: str | None = None) -> tuple[Example, ...]:
    """Reads all examples of a source, in order.

    source   a file (.jsonl, .json with a list or with lines, .csv, .parquet; each but the last also .gz; in JSON, a bare text
             for a row is raw text), a folder that `datasets` saved or that holds one such file, or a hub id: `ID`,
             `ID:CONFIG` or `ID:CONFIG/SPLIT`. Corpora whose rows need their own reading are known by their hub id, and as
             `FOLDER:SET` where a folder holds them. Conditions on attributes may follow, each in brackets,
             `SOURCE[severity > 3][group = women]`: other rows are left out
    columns  field -> column, for files with other names: `{"prompt": "instruction", "attributes.group": "target_group"}`;
             the fields and the names that are known without it are `expunge.data.row.COLUMNS`. Corpora have their own
    split    split of a hub data set, where the id does not say it

    Raises ExpungeError, with file and line, for a row that cannot be read, and if there are no rows.
    """
    place, conditions = split_conditions(source)
    read_set = corpus_set(place)
    examples = to_examples(each_row(place, split), columns or {}, str(place)) if read_set is None else read_set()
    if not examples:
        raise ExpungeError(f"{place} holds no examples; give a file with at least one row")
    try:
        return tuple(examples[row] for row in rows_where(examples, conditions))
    except ExpungeError as error:
        raise ExpungeError(f"{place}: {error}") from error


def split_conditions(source: Source) -> tuple[Source, tuple[str, ...]]:
    """Splits a source from the conditions in brackets behind it."""
    match = None if Path(source).exists() else _CONDITIONS.fullmatch(str(source))
    if match is None:
        return source, ()
    return match["source"], tuple(match["conditions"][1:-1].split("]["))


def read_request(
    forget: Source | Sequence[Source],
    retain: Source | Sequence[Source] | None = None,
    holdout: Source | Sequence[Source] | None = None,
    refusals: Source | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    where: Sequence[str] = (),
    only: Source | None = None,
) -> Request:
    """Reads each set (one source or several) and warns, with counts, of rows in two sets or twice in the forget set.

    where  conditions on attributes, `severity > 3`: forget examples for which one does not hold are left out
    only   a file of rows (`expunge.data.where.write_rows`): forget examples that it does not name are left out

    Raises ExpungeError, with file and line, for a row that cannot be read, for an empty forget set, and for a holdout set whose
    rows are all trained on.
    """
    each = _read_each(forget, columns, "forget")
    chosen, sources = _where(_flat(each), tuple(map(len, each)), where, only)
    request = Request(
        forget=chosen,
        retain=_flat(_read_each(retain, columns, "retain")),
        holdout=_flat(_read_each(holdout, columns, "holdout")),
        refusals=() if refusals is None else read_lines(refusals),
        forget_sources=sources,
    )
    if not request.forget:
        raise ExpungeError("the forget set is empty; give at least one file with examples to forget")
    sets = {"forget": request.forget, "retain": request.retain, "holdout": request.holdout}
    ids = {name: {example.id for example in examples} for name, examples in sets.items()}
    if twice := len(request.forget) - len(ids["forget"]):
        _warn(f"{twice} of {len(request.forget)} forget examples are there more than once; each copy is trained on")
    if both := len(ids["forget"] & ids["retain"]):
        _warn(f"{both} of {len(ids['forget'])} forget examples are also in the retain set, which works against forgetting them")
    seen = len(ids["holdout"] & (ids["forget"] | ids["retain"]))
    if seen and seen == len(ids["holdout"]):
        raise ExpungeError("every holdout example is also trained on; --holdout is for rows that the model never saw")
    if seen:
        _warn(f"{seen} of {len(ids['holdout'])} holdout examples are also trained on, so they are no measure of the unseen")
    return request


def _read_each(
    sources: Source | Sequence[Source] | None, columns: Mapping[str, str] | None, flag: str
) -> list[tuple[Example, ...]]:
    several = [] if sources is None else [sources] if isinstance(sources, str | Path) else sources
    try:
        return [read_examples(source, columns=columns) for source in several]
    except MissingData as error:
        raise MissingData(f"--{flag}: {error}") from error


def _flat(parts: Sequence[tuple[Example, ...]]) -> tuple[Example, ...]:
    return tuple(example for part in parts for example in part)


def _where(
    examples: tuple[Example, ...], sources: tuple[int, ...], conditions: Sequence[str], only: Source | None
) -> tuple[tuple[Example, ...], tuple[int, ...]]:
    """Returns the chosen examples, and how many of them each source gave."""
    if not conditions and only is None:
        return examples, sources
    rows, ends = choose(examples, conditions, only), list(accumulate(sources))
    left = Counter(bisect_right(ends, row) for row in rows)
    return tuple(examples[row] for row in rows), tuple(left[i] for i in range(len(sources)))


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)
