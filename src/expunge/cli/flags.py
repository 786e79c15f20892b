"""Parses command-line words into one typed value with tyro, whose errors become sentences."""

import contextlib
import io
import re
from collections.abc import Collection, Sequence
from typing import Any, TypeVar, get_args

import tyro
from pydantic import BaseModel, ValidationError
from tyro.conf import AvoidSubcommands, OmitArgPrefixes, Positional, PositionalMetavarFromFieldName

from expunge.errors import ExpungeError, nearest

Flags = TypeVar("Flags", bound=BaseModel)

PLAIN = tyro.conf.arg(name="")
"""Marks a field whose own fields are flags without a prefix."""
_Named: Any = type(PLAIN)
POSITIONAL = get_args(Positional[str])[1]
"""Marks a field that is a word without a flag."""


def parse(cls: type[Flags], program: str, words: Sequence[str], default: Flags | None = None, *, prefixes: bool = False) -> Flags:
    """Parses flags named like the fields of `cls` (`--learning-rate`); nested fields need no prefix unless `prefixes`.

    Raises ExpungeError for an unknown or missing flag or a bad value; `--help` prints and exits.
    """
    check_known(cls, program, words, prefixes=prefixes)
    if not words and default is None and not any(field.is_required() for field in cls.__pydantic_fields__.values()):
        return cls.model_construct()  # pydantic does not check defaults either
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            value, unknown = tyro.cli(
                cls,
                prog=program,
                args=_columns_apart(words),
                default=default,
                return_unknown_args=True,
                config=_config(prefixes),
            )
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][-1]).replace("_", "-") if first["loc"] else "flags"
        raise ExpungeError(f"{program}: {flag}: {first['msg']} (it is {first['input']!r})") from None
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        said = _sentence(printed.getvalue()).replace(f"Missing from {program}:", "missing:")
        raise ExpungeError(f"{program}: {said}; `{program} --help` lists the flags") from None
    if unknown:
        raise _no_flag(program, unknown[0], flags_of(cls, prefixes=prefixes))
    assert value is not None
    return value


def check_known(cls: type[BaseModel], program: str, words: Sequence[str], *, prefixes: bool = False) -> None:
    """Raises ExpungeError for a word that looks like a flag and is none, and for an empty path, which would be the folder here.

    From the names of the fields alone, before a schema or a parser is built, which take longer than all the rest. A value never
    begins with two dashes: tyro takes no such word after a flag either.
    """
    known = {"--", "--help", *flags_of(cls, prefixes=prefixes)}
    for name in PLACES:
        if value_of(words, f"--{name}") == "":
            raise ExpungeError(f"{program}: --{name} is empty; give a path or leave it out")
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known and not flag.startswith("--tyro-"):  # which write shell completions
            raise _no_flag(program, word, known)


def _no_flag(program: str, word: str, known: Collection[str]) -> ExpungeError:
    flag = word.partition("=")[0]
    return ExpungeError(f"{program} has no flag '{flag}'{nearest(flag, known)}")


def _columns_apart(words: Sequence[str]) -> list[str]:
    """Splits `--columns response=q prompt=a` into `--columns response q prompt a`: both forms are accepted."""
    found: list[str] = []
    start = next((i + 1 for i, word in enumerate(words) if word == "--columns"), len(words))
    stop = next((i for i in range(start, len(words)) if words[i].startswith("--")), len(words))
    named = words[start:stop]
    for word in named if all("=" in word for word in named) else ():
        field, _, column = word.partition("=")
        found += [field, column]
    return [*words[:start], *(found or named), *words[stop:]]


def value_of(words: Sequence[str], flag: str) -> str | None:
    """Returns the word after a flag, or after its equals sign."""
    for i, word in enumerate(words):
        if word == flag and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


PLACES = ("model", "base", "models", "forget", "retain", "holdout", "data", "refusals", "config", "out")
"""Flags whose values are files or folders."""
_NO_TYPE = re.compile(
    r"Error parsing (?P<flag>--[\w.-]+): no type matching (?P<types>\S+) could be .*? from \['(?P<value>.*?)'\]"
)
"""Matches tyro's message about a value that none of a flag's types takes."""
_PYDANTIC = re.compile(
    r"validation errors? for \w+ (?:(?P<field>[a-z][a-z0-9_.]*) )?(?:Value error, )?(?P<what>[A-Za-z].*?) "
    r"\[type=\w+, input_value=(?P<value>.*?), input_type="
)
"""Matches pydantic's message about a nested value, such as a method's field, inside tyro's message."""


def _config(prefixes: bool) -> tuple[Any, ...]:
    always = (AvoidSubcommands, PositionalMetavarFromFieldName)
    return always if prefixes else (*always, OmitArgPrefixes)


def flags_of(cls: type[BaseModel], *, prefixes: bool, before: str = "") -> list[str]:
    """Returns all flags of a command: its fields and those of the values that it holds (`before` is the prefix of theirs)."""
    found: list[str] = []
    for name, info in cls.__pydantic_fields__.items():  # without looking for their docstrings
        said = next((mark.name for mark in info.metadata if isinstance(mark, _Named) and mark.name), name)
        flag, kind = f"{before}{said.replace('_', '-')}", info.annotation
        if POSITIONAL in info.metadata:
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            inner = f"{flag}." if prefixes and PLAIN not in info.metadata else ""
            found += flags_of(kind, prefixes=prefixes, before=inner)
        else:
            found += [f"--{flag}", *([f"--{before}no-{said.replace('_', '-')}"] if kind is bool else [])]
    return found


def _sentence(box: str) -> str:
    """Returns the message inside tyro's box, on one line. Where the output cannot hold the box's characters, it is a rule of
    dashes."""
    lines = [re.sub(r"[│╭╮╰╯─]+|^ *-{3,} *$", " ", line).strip() for line in box.splitlines()]
    text = " ".join(line for line in lines if line)
    text = re.sub(r"\s+", " ", text).removeprefix("Parsing error").removeprefix("Required options").strip()
    text = re.sub(r"^Invalid choice (?=invalid choice)", "", text)  # tyro's heading says it once more
    if (none := _NO_TYPE.search(text)) is not None:
        return f"{none['flag']} takes {none['types'].replace('|', ' or ')}, not '{none['value']}'"
    if (wrong := _PYDANTIC.search(text)) is not None:
        flag = f"--{wrong['field'].replace('_', '-')}: " if wrong["field"] else ""
        return f"{flag}{wrong['what']}" + (f" (it is {wrong['value']})" if flag else "")
    return re.split(r" For full helptext| Arguments:| Usage:", text)[0].strip().rstrip(".;")
