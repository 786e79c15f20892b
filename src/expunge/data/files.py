"""Reads rows from files of all supported formats, from folders and from the hub.

Errors name the file, the line and the reason. Imports no torch, and `datasets` only where it is needed.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from expunge.errors import ExpungeError, MissingData

Located = Iterator[tuple[str, dict[str, Any]]]
"""(file and line, row)"""
Source = str | Path

UNREADABLE = (OSError, EOFError, zlib.error)
"""Raised by a file that is missing, cut off, or damaged within its compression."""
_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[^/:]*)(/(?P<split>[^/:]+))?)?")


def read_rows(source: Source, *, split: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Yields (file and line, row) of all rows of a source, for a corpus that makes examples of its fields itself. Raises
    ExpungeError if there are none."""
    found = list(each_row(source, split))
    if not found:
        raise ExpungeError(f"{source} holds no rows; give a file with at least one")
    return found


def read_lines(source: Source) -> tuple[str, ...]:
    """Reads texts, one per line, plain or as JSON strings, such as the refusals of a request. Raises ExpungeError for a
    missing or empty file, and for lines that are JSON objects or lists."""
    path = Path(source)
    if not path.is_file():
        raise ExpungeError(f"there is no file {path}; give a file with one text a line")
    texts = []
    for number, line in lines(path):
        try:
            value = json.loads(line) if line[0] in '"[{' else line
        except ValueError:
            value = line
        if not isinstance(value, str):
            raise ExpungeError(f"{path} line {number} is a JSON object or list; write each text on a line of its own")
        texts.append(value)
    if not texts:
        raise ExpungeError(f"{path} holds no texts; give a file with one text a line")
    return tuple(texts)


def each_row(source: Source, split: str | None = None) -> Located:
    """Yields the rows one after the other, without holding them all in memory. Raises ExpungeError for a missing file, an
    unknown format, or a row that cannot be read."""
    path = Path(source)
    if path.is_dir():
        return _folder_rows(path)
    if path.is_file():
        return _file_rows(path)
    hub = _HUB.fullmatch(str(source))
    if hub and not _suffix(path) and not Path(hub["id"]).exists():
        return _hub_rows(str(source), hub["id"], hub["config"] or None, hub["split"] or split)
    raise MissingData(f"there is no file or folder {path}; check the path")


def _suffix(path: Path) -> str:
    """Returns `.jsonl` for a.jsonl and a.jsonl.gz; "" for a suffix that is not supported."""
    name = path.name.lower()
    return next((s for s in _READERS if name.endswith((s, s + ".gz"))), "")


def _file_rows(path: Path) -> Located:
    suffix = _suffix(path)
    if not suffix or path.name.lower().endswith(".parquet.gz"):
        raise ExpungeError(f"{path} has no supported format; give {', '.join(_READERS)}, a datasets folder or a hub id")
    return _READERS[suffix](path)


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields lines that are not blank, numbered from 1 and stripped. Lines end at line feeds only. Raises ExpungeError for a
    file that cannot be read or is not UTF-8."""
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if line := line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise ExpungeError(f"{path} is not UTF-8 in line {_undecodable(path)} ({error.reason}); convert it") from error
    except UNREADABLE as error:
        raise ExpungeError(f"{path} cannot be read ({error}); check the file, or copy it again") from error


def _undecodable(path: Path) -> int:
    """Returns the number of the first line that is not UTF-8; text is decoded in blocks, which do not tell."""
    number = 0
    with suppress(*UNREADABLE), gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
        for line in file:
            number += 1
            try:
                line.decode()
            except UnicodeDecodeError:
                break
    return number


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ExpungeError(f"{where} is not JSON ({said}); correct it") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object. Raises ValueError for a name that is there twice, of which one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' is there twice in one object")
    return found


def _jsonl_rows(path: Path) -> Located:
    for number, line in lines(path):
        where = f"{path} line {number}"
        yield where, _object(_json(line, where), where)


def _json_rows(path: Path) -> Located:
    """Reads a list of objects (or texts), or JSON lines, which `datasets` also names .json."""
    first = next(lines(path), None)
    if first is None or not first[1].startswith("["):
        yield from _jsonl_rows(path)
        return
    for number, row in enumerate(_json("\n".join(line for _, line in lines(path)), str(path)), start=1):
        where = f"{path} row {number}"
        yield where, _object(row, where)


def _object(value: Any, where: str) -> dict[str, Any]:
    """Returns a row as an object; a bare text becomes a row of raw text."""
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise ExpungeError(f'{where} is not an object; write rows like {{"prompt": "...", "response": "..."}}')
    return value


def _csv_rows(path: Path) -> Located:
    """Reads CSV rows; empty cells count as missing."""
    csv.field_size_limit(2**31 - 1)  # documents are longer than the default 128 kB
    try:
        with _open(path) as file:
            reader = csv.DictReader(file, strict=True)
            if len(names := reader.fieldnames or []) == 1 and (mark := next((m for m in ";\t|" if m in names[0]), None)):
                kind = {";": "semicolons", "\t": "tabs", "|": "bars"}[mark]
                raise ExpungeError(f"{path} has its columns between {kind}; write it again with commas between them")
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ExpungeError(f"{path} has two columns '{twice}', of which one would be lost; rename one of them")
            for row in reader:
                where = f"{path} line {reader.line_num}"
                if None in row:
                    raise ExpungeError(
                        f"{where} has more cells than the first line has names; put quotes around texts with commas"
                    )
                yield where, {name: cell for name, cell in row.items() if cell}
    except (csv.Error, UnicodeDecodeError, *UNREADABLE) as error:
        raise ExpungeError(f"{path} is not CSV in UTF-8 ({error}); convert it") from error


def _parquet_rows(path: Path) -> Located:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise ExpungeError(f"{path} is not Parquet ({str(error).splitlines()[0]}); write it again") from error


_READERS: dict[str, Callable[[Path], Located]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _folder_rows(folder: Path) -> Located:
    if (folder / "dataset_dict.json").is_file():
        try:
            named = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ExpungeError(f"{folder} is not a whole datasets folder ({error!r}); save it again") from error
        splits = ", ".join(str(folder / name) for name in named)
        raise ExpungeError(f"{folder} holds several splits; give one of {splits}")
    if (folder / "state.json").is_file():
        import datasets

        try:
            saved = datasets.load_from_disk(str(folder))
        except (OSError, ValueError, KeyError) as error:
            raise ExpungeError(f"{folder} is not a whole datasets folder ({error}); save it again") from error
        return ((f"{folder} row {number}", row) for number, row in enumerate(saved, start=1))
    files = sorted(path for path in folder.iterdir() if path.is_file() and _suffix(path))
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise MissingData(
            f"the folder {folder} holds {len(files)} data files where one is needed ({names}); give the path of a file"
        )
    return _file_rows(files[0])


def _hub_rows(source: str, hub_id: str, config: str | None, split: str | None) -> Located:
    import datasets

    try:
        loaded = datasets.load_dataset(hub_id, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise MissingData(f"there is no file {source}, and as a hub id it cannot be loaded: {reason}") from error
    if isinstance(loaded, dict):
        if len(loaded) != 1:
            raise ExpungeError(f"{source} has the splits {', '.join(loaded)}; give one as {hub_id}:{config or ''}/SPLIT")
        loaded = next(iter(loaded.values()))
    return ((f"{source} row {number}", row) for number, row in enumerate(loaded, start=1))
