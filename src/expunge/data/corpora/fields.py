"""Finds the files of a corpus, and reads and checks the fields of its rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from expunge.data.example import Example
from expunge.data.files import Located, each_row
from expunge.errors import ExpungeError, MissingData, nearest


@dataclass(frozen=True)
class Sets:
    """The named sets of a corpus: `HUB_ID:NAME`, or `FOLDER:NAME` where a folder holds the corpus."""

    hubs: Mapping[str, str | None]
    """Hub ids that this corpus reads itself, each with its default set."""
    names: tuple[str, ...]
    read: Callable[[str, str], tuple[Example, ...]]
    """(folder or hub id, name) -> examples."""

    def named(self, name: str) -> str | None:
        """Returns the set that a name means; the hub's own names are accepted too: `default/train`, `prompts/hate_women_1k`."""
        bare = name.removeprefix("default").strip("/")
        return next((n for n in (bare, bare.removesuffix("/train"), bare.removesuffix("_1k")) if n in self.names), None)

    def get(self, place: str, name: str) -> str:
        """Reads the set of that name at the hub id `place`. Raises ExpungeError, with the nearest name, if there is none."""
        only = self.hubs[place]
        if only is not None and name.removeprefix("default").strip("/") in ("", "train"):
            return only
        found = self.named(name)
        if found is None or only not in (None, found):
            known = self.names if only is None else (only,)
            listed = ", ".join(known[:8]) + (" ..." if len(known) > 8 else "")
            raise ExpungeError(f"{place} has no set '{name}'{nearest(name, known)}; write {place}:NAME with one of {listed}")
        return found


def each_place(source: str | Path, names: Sequence[str], hub: str, config: str) -> list[str | Path]:
    """Returns the files of the first of `names` that the folder `source` has, shards in order; or the corresponding id on the
    hub.

    names    paths inside the folder, as the corpus is published; `*` stands for the numbers of shards
    hub      hub id of the corpus; config what follows it: `CONFIG/SPLIT`
    """
    folder = Path(source)
    if not folder.is_dir():
        return [place(source, names, hub, config)]
    found = next((files for name in names if (files := sorted(f for f in folder.glob(name) if f.is_file()))), None)
    return [*found] if found else [place(source, names, hub, config)]


def rows_of(source: str | Path, names: Sequence[str], hub: str, config: str) -> Located:
    """Yields (file and line, row) of every row of these files."""
    return chain.from_iterable(each_row(found) for found in each_place(source, names, hub, config))


def scores(row: Mapping[str, Any], names: Sequence[str], where: str) -> dict[str, float]:
    """Reads those of the fields that hold a number; CSV has numbers as text. Missing values are left out."""
    return {name: value for name in names if (value := score(row, name, where)) is not None}


def score(row: Mapping[str, Any], name: str, where: str) -> float | None:
    """Returns a field that must be a number or nothing. Raises ExpungeError otherwise."""
    value = row.get(name)
    if value is None or value == "" or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise ExpungeError(
            f"{where} has '{value}' in its field '{name}', which is no number; take the file as published"
        ) from None
    return found if math.isfinite(found) else None


def place(source: str | Path, names: Sequence[str], hub: str, config: str) -> str | Path:
    """Returns the first of `names` that lies in the folder `source`, or the corresponding hub id.

    names    paths inside the folder, as the corpus is published
    hub      hub id of the corpus; config what follows it: `CONFIG/SPLIT`

    Raises MissingData if there is none.
    """
    folder = Path(source)
    if folder.is_dir():
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None:
            other = f" (nor {', '.join(names[1:])})" if len(names) > 1 else ""
            raise MissingData(f"{folder} holds no {names[0]}{other}; get it from {hub} on the hub")
        return found
    if isinstance(source, Path) or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise MissingData(f"there is no folder {source}; give a folder that holds {names[0]}, or the hub id {hub}")
    return f"{source}:{config}"


def text(row: Mapping[str, Any], name: str, where: str) -> str:
    """Returns a field that must be a non-empty text, with its spaces and line ends unchanged. Raises ExpungeError otherwise."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ExpungeError(f"{where} has no text in its field '{name}'; take the file as published")
    return value


def texts(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """Returns a field that must be a list of texts. Raises ExpungeError otherwise."""
    value = row.get(name)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ExpungeError(f"{where} has no list of texts in its field '{name}'; take the file as published")
    return tuple(value)


def number(row: Mapping[str, Any], name: str, where: str) -> int:
    """Returns a field that must be an integer. Raises ExpungeError otherwise."""
    value = row.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ExpungeError(f"{where} has no whole number in its field '{name}'; take the file as published")
    return value
