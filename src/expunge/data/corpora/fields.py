"""What the corpora share: where the file of a split lies, and fields that are checked before they are used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError


def place(source: str | Path, names: Sequence[str], hub: str, config: str) -> str | Path:
    """The first of `names` that lies in the folder `source`, or the id with which the hub gives the same.

    names    paths inside the folder, as the corpus is published
    hub      hub id of the corpus; config what follows it: `CONFIG/SPLIT`
    """
    folder = Path(source)
    if folder.is_dir():
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None:
            raise ExpungeError(f"{folder} holds no {' and no '.join(names)}; get it from {hub} on the hub")
        return found
    if isinstance(source, Path) or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ExpungeError(f"there is no folder {source}; give a folder that holds {names[0]}, or the hub id {hub}")
    return f"{source}:{config}"


def text(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field that has to be a text with something in it; its blanks and line ends stay as they are."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ExpungeError(f"{where} has no text in its field '{name}'; take the file as published")
    return value


def texts(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """A field that has to be a list of texts."""
    value = row.get(name)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ExpungeError(f"{where} has no list of texts in its field '{name}'; take the file as published")
    return tuple(value)


def number(row: Mapping[str, Any], name: str, where: str) -> int:
    """A field that has to be a whole number."""
    value = row.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ExpungeError(f"{where} has no whole number in its field '{name}'; take the file as published")
    return value
