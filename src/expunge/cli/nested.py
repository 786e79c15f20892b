"""Parses flags of a method made of others: `expunge unlearn spunge --each rmu --each.layer 7 --merge ties --merge.density
0.2`."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import BaseModel, create_model

from expunge.cli.flags import PLAIN
from expunge.errors import ExpungeError, nearest


class Narrowed(NamedTuple):
    """A method whose inner methods are known, so that their fields can be flags."""

    spec: type[BaseModel]
    said: dict[str, Any]
    """Fields of the method, with its inner methods by name."""
    words: list[str]
    """The remaining words of the command line."""


def inner_choices(spec: type[BaseModel]) -> dict[str, dict[str, type[BaseModel]]]:
    """Returns field -> name -> class, for the fields that hold another method."""
    found: dict[str, dict[str, type[BaseModel]]] = {}
    for field, info in spec.model_fields.items():
        classes = [cls for cls in get_args(info.annotation) if isinstance(cls, type) and issubclass(cls, BaseModel)]
        if info.discriminator and classes:
            found[field] = {str(cls.__pydantic_fields__["name"].default): cls for cls in classes}
    return found


def narrow(spec: type[BaseModel], said: dict[str, Any], words: Sequence[str]) -> Narrowed:
    """Takes `--each NAME` out of the words; a method named there replaces the one in the file, with its own defaults."""
    left, fields = list(words), dict(said)
    classes: dict[str, Any] = {}
    for field, choices in inner_choices(spec).items():
        name, left = _taken(left, f"--{field}")
        inner = fields.get(field) or spec.model_fields[field].get_default(call_default_factory=True).model_dump(mode="json")
        name = name or str(inner.get("name"))
        if name not in choices:
            raise ExpungeError(f"there is no method '{name}' for --{field}{nearest(name, choices)}; it is {', '.join(choices)}")
        fields[field] = inner if inner.get("name") == name else {"name": name}
        classes[field] = (choices[name], choices[name]())
    return Narrowed(create_model(spec.__name__, __base__=spec, __doc__=spec.__doc__, **classes), fields, left)


def plain(cls: type[BaseModel]) -> Any:
    """Returns the type of a part of a run whose fields are flags without a prefix."""
    return Annotated[cls, PLAIN]


def _taken(words: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """Returns the value after the last `flag` (or `flag=`), and the words without it."""
    value, left, i = None, [], 0
    while i < len(words):
        if words[i] == flag:
            if i + 1 == len(words):
                raise ExpungeError(f"{flag} needs the name of a method after it")
            value, i = words[i + 1], i + 1
        elif words[i].startswith(f"{flag}="):
            value = words[i].removeprefix(f"{flag}=")
        else:
            left.append(words[i])
        i += 1
    return value, left
