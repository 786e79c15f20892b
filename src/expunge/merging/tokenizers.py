"""Compares the tokenizers of the models of a merge with that of the base, which the result keeps.

Rows of embeddings are merged by their index, so that models whose tokenizers give other ids to tokens must not be merged row by
row; and a chat template that a model brings along is not in the result. Files are read as JSON: no tokenizer is loaded.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError
from expunge.merging.inputs import Source
from expunge.models.folder import chat_template, file_hash

FILE = "tokenizer.json"
FOREIGN = 0.5
"""Share of ids with another token above which the rows of two models have nothing in common."""


def compare(base: Path, label: str, sources: Sequence[Source]) -> list[str]:
    """Describes whose tokens have other ids than in the base, also as warnings, and whose chat template is left out.

    Raises ExpungeError for a model most of whose tokens have other ids.
    """
    said, mine = [], None
    for source in sources:
        if not source.folder.is_dir():
            continue
        theirs, ours = chat_template(source.folder), chat_template(base)
        if theirs is not None and theirs != ours:
            said.append(f"the chat template of {source.label} is left out: the result has the tokenizer of {label}")
        if not _differ(base / FILE, source.folder / FILE):
            continue
        mine, other = _tokens(base / FILE) if mine is None else mine, _tokens(source.folder / FILE)
        common = mine.keys() & other.keys()
        moved = [index for index in sorted(common) if mine[index] != other[index]]
        if not moved:
            continue
        counted = (
            f"the tokenizer of {source.label} has another token than that of {label} for {len(moved)} of {len(common)} ids, such "
            f"as {other[moved[0]]!r} for {mine[moved[0]]!r}"
        )
        if len(moved) > FOREIGN * len(common):
            raise ExpungeError(f"{counted}: their vocabularies differ; only models of one tokenizer can be merged")
        said.append(f"{counted}: their rows are merged all the same")
        warnings.warn(said[-1], UserWarning, stacklevel=3)
    return said


def _differ(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and file_hash(first) != file_hash(second)


def _tokens(file: Path) -> dict[int, str]:
    """Returns id -> token. Raises ExpungeError for a file that is no tokenizer."""
    try:
        said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = said["model"]["vocab"]
        named = vocabulary.items() if isinstance(vocabulary, Mapping) else ((row[0], i) for i, row in enumerate(vocabulary))
        found = {int(index): str(token) for token, index in named}
        return found | {int(token["id"]): str(token["content"]) for token in said.get("added_tokens") or ()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ExpungeError(f"{file} cannot be read as a tokenizer ({error!r}); copy the folder again") from error
