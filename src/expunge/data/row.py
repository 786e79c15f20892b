"""Converts one row of a data file to an Example, or raises an error that says what is wrong with it and where."""

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from expunge.data.example import Attribute, Example
from expunge.errors import ExpungeError, nearest

COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question"),
    "response": ("response", "answer"),
    "text": ("text",),
    "choices": ("choices",),
    "answer": ("answer",),
    "paraphrases": ("paraphrases", "paraphrased_answer"),
    "perturbed": ("perturbed", "perturbed_answer"),
    "attributes": ("attributes",),
}
"""Field -> the column names it is read from, of which the first present one is used; the second names are TOFU's. With
`choices`, `answer` is the index of the right one; without, it is the response. Other columns are ignored unless `columns`
maps them."""

CHATS = ("messages", "conversations", "conversation")
"""Columns in which data sets keep whole chats."""
_CHAT = "has a chat in {}, of which no column is one text; write each question with its answer as a row of prompt and response"
_PYTHON_LIST = re.compile(r"""\s*\[\s*['"].*['"]\s*\]\s*""", re.DOTALL)
"""How pandas writes a list into a CSV cell."""

Row = Mapping[str, Any]


def check_columns(columns: Mapping[str, str], present: Mapping[str, None], source: str) -> None:
    """Raises ExpungeError unless mapped names are fields, or `attributes.NAME`, and their columns exist."""
    for name, column in columns.items():
        if name not in COLUMNS and not name.startswith("attributes."):
            known = ", ".join([*COLUMNS, "attributes.NAME"])
            raise ExpungeError(f"--columns cannot map '{name}'{nearest(name, COLUMNS)}; it maps {known}")
        if column not in present:
            found = ", ".join(present)
            raise ExpungeError(f"{source} has no column '{column}' for {name}{nearest(column, present)}; it has {found}")


def to_examples(
    rows: Iterable[tuple[str, Row]], columns: Mapping[str, str], source: str, *, warns: bool = True
) -> tuple[Example, ...]:
    """Converts each row to an example; takes (file and line, row) as from `expunge.data.files.each_row`.

    warns  warn of columns with texts that are not read; not where it is known what the columns are
    """
    found = list(rows)
    present = dict.fromkeys(name for _, row in found for name in row)
    if found:
        check_columns(columns, present, source)
    if found and warns:
        _say_what_is_left(found, columns, present, source)
    return tuple(to_example(row, columns, where) for where, row in found)


def _say_what_is_left(found: Sequence[tuple[str, Row]], columns: Mapping[str, str], present: Iterable[str], source: str) -> None:
    """Warns of text columns that are not read, of texts beside a prompt and a response, and of Alpaca's `input`, which is
    appended to the prompt."""
    notes = []
    if (both := sum(1 for _, row in found if _has_both(row, columns))) > 0:
        notes.append(
            f"{both} of {len(found)} rows of {source} have a text beside their prompt and response, which is left out; name it "
            "with --columns text text if it is what is wanted"
        )
    if (joined := sum(1 for _, row in found if _alpaca_input(row, columns))) > 0:
        notes.append(
            f"{joined} of {len(found)} rows of {source} have an `input` beside their instruction; it follows on the next line, "
            "as in Alpaca"
        )
    known = {*columns.values(), *(name for names in COLUMNS.values() for name in names), *(["input"] if joined else [])}
    unused = [name for name in present if name not in known and any(_is_text(row.get(name)) for _, row in found)]
    if unused:
        notes.append(
            f"{source} has texts in {', '.join(unused)}, which are left out; name them with --columns if they are wanted"
        )
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=4)


def _alpaca_input(row: Row, columns: Mapping[str, str]) -> str | None:
    """Returns the text of Alpaca's column `input`."""
    value = row.get("input")
    wanted = columns.get("prompt") == "instruction" and "input" not in columns.values()
    return value if wanted and isinstance(value, str) and value.strip() else None


def _has_both(row: Row, columns: Mapping[str, str]) -> bool:
    """Returns whether a row has raw text beside a prompt and a response, and nobody said which is meant."""
    if "text" in columns or not _is_text(row.get("text")):
        return False
    read = {field: (columns[field],) if field in columns else COLUMNS[field] for field in ("prompt", "response")}
    return "text" not in columns.values() and all(any(_is_text(row.get(name)) for name in names) for names in read.values())


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def to_example(row: Row, columns: Mapping[str, str], where: str) -> Example:
    """Converts one row; `columns` maps fields to columns, `where` is the file and line for errors."""
    return _Reader(row, columns, where).example()


class _Reader:
    """Reads the fields of a row. Null, NaN and missing cells are the same: Parquet and `datasets` fill every column of every row,
    and pandas writes NaN."""

    def __init__(self, row: Row, columns: Mapping[str, str], where: str) -> None:
        self.row, self.columns, self.where = row, columns, where

    def example(self) -> Example:
        if self.value("choices") is not None:
            return self.question()
        prompt, response, text = self.value("prompt"), self.value("response"), self.value("text")
        if text is not None and ("text" in self.columns or (prompt is None and response is None)):
            return self.build(None, self.text("text", text))
        if prompt is None and response is None and (chat := next((name for name in CHATS if name in self.row), None)):
            self.refuse(_CHAT.format(chat))
        if prompt is None and response is None:
            self.refuse(
                f"has no prompt, response or text (it has {', '.join(self.row) or 'nothing'}); name its columns with --columns"
            )
        if response is None:
            self.refuse("has a prompt and no response; add the response, or name its column with --columns response COLUMN")
        if prompt is None:
            self.refuse("has a response and no prompt; add the prompt, or put raw text under 'text'")
        if isinstance(response, int) and not isinstance(response, bool) and "response" not in self.row:
            self.refuse(f"has the number {response} as its answer and no choices; add the choices, or write the answer as text")
        asked, more = self.text("prompt", prompt), _alpaca_input(self.row, self.columns)
        return self.build(asked if more is None else f"{asked}\n{more}", self.text("response", response))

    def question(self) -> Example:
        choices = self.texts("choices")
        answer, response = self.value("answer"), self.value("response", only_first=True)
        if len(choices) < 2:
            self.refuse(f"has {len(choices)} choices; a question needs at least two")
        if (isinstance(answer, str) and answer.strip().isdecimal()) or (isinstance(answer, float) and answer.is_integer()):
            answer = int(answer)  # CSV writes texts, pandas writes floats
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
            self.refuse(
                f"has choices, and its answer is {answer!r}; it has to be the index of the right one, 0 to {len(choices) - 1}"
            )
        if response not in (None, choices[answer]):
            self.refuse(f"has a response that is not its choice number {answer}; leave the response out")
        if (prompt := self.value("prompt")) is None:
            self.refuse("has choices and no prompt; add the prompt")
        return self.build(self.text("prompt", prompt), choices[answer], choices, answer)

    def build(self, prompt: str | None, response: str, choices: tuple[str, ...] = (), answer: int | None = None) -> Example:
        lists = self.texts("paraphrases"), self.texts("perturbed")
        return Example(prompt, response, choices, answer, *lists, self.attributes(), self.where)

    def value(self, name: str, only_first: bool = False) -> Any:
        """Returns what the row holds for a field; a mapped column replaces the default names."""
        names = (self.columns[name],) if name in self.columns else COLUMNS[name][: 1 if only_first else None]
        return next((self.row[n] for n in names if not _missing(self.row.get(n))), None)

    def text(self, name: str, value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            self.refuse(_CHAT.format(name))
        if not isinstance(value, str):
            self.refuse(f"has a {name} that is {_kind(value)}; it has to be text")
        if not value.strip():
            self.refuse(f"has an empty {name}; fill it in or remove the row")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            self.refuse(f"has half a character (a lone surrogate) in its {name}; write the file again as UTF-8")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Returns a list of texts, or a single one as a list; a CSV cell may hold a JSON list."""
        value = self.value(name)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = self.parsed(name, value, fallback=None if _PYTHON_LIST.fullmatch(value) else [value])
        if value is None:
            return ()
        if not isinstance(value, list | tuple | str):
            self.refuse(f"has {name} that are {_kind(value)}; they have to be a list of texts")
        return tuple(self.text(f"{name} item", item) for item in ([value] if isinstance(value, str) else value))

    def attributes(self) -> dict[str, Attribute]:
        value = self.value("attributes")
        value = self.parsed("attributes", value, fallback=None) if isinstance(value, str) else value
        if not isinstance(value, dict | None):
            self.refuse(f"has attributes that are {_kind(value)}; they have to be a flat map of names to values")
        mapped = {n.removeprefix("attributes."): self.row.get(c) for n, c in self.columns.items() if n.startswith("attributes.")}
        found = {name: v for name, v in ((value or {}) | mapped).items() if not _missing(v)}
        for name, v in found.items():
            if not isinstance(v, Attribute) or (isinstance(v, float) and math.isinf(v)):
                self.refuse(f"has an attribute '{name}' that is {_kind(v)}; attributes are texts, numbers or true and false")
        return found

    def parsed(self, name: str, value: str, fallback: Any) -> Any:
        try:
            return json.loads(value)
        except ValueError:
            if fallback is None:
                example = '{"topic": "rivers"}' if name == "attributes" else '["in Paris", "in Oslo"]'
                self.refuse(f"has {name} that are not JSON; write them like {example}")
            return fallback

    def refuse(self, what: str) -> NoReturn:
        raise ExpungeError(f"{self.where} {what}")


def _missing(value: Any) -> bool:
    """Returns whether a cell is null, or the NaN that pandas writes for null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _kind(value: Any) -> str:
    names: dict[type, str] = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "a map",
        list: "a list",
        str: "text",
    }
    return names.get(type(value), f"a {type(value).__name__}")
