"""Describes pydantic fields by their docstrings, at a tenth of the cost of pydantic's own implementation.

pydantic (`use_attribute_docstrings`) takes each class's source through Python's tokenizer: 0.2 s of every start for our methods,
metrics and suites. Here a file is parsed once, when the fields of one of its classes are first looked at.
"""

import ast
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


class _Fields:
    """Gives the fields of a class, with the docstrings that follow them there or in the class that they come from."""

    def __get__(self, _: Any, owner: type[BaseModel]) -> dict[str, FieldInfo]:
        fields = owner.__pydantic_fields__
        for name in [name for name, field in fields.items() if field.description is None]:
            texts = (_texts_of(cls) for cls in owner.__mro__)
            # Empty where there is none: tyro would search all sources of the class for one that is None.
            fields[name].description = next((text[name] for text in texts if name in text), "")
        return fields


class Described(BaseModel):
    """Base of classes whose fields have docstrings, which become their descriptions in `--help` and `expunge methods NAME`.

    Schemas are built when the first value of a class is: a wrong flag, or a list of methods, needs none.
    """

    model_config = ConfigDict(defer_build=True)
    model_fields: ClassVar[_Fields] = _Fields()  # type: ignore[assignment]


def _texts_of(cls: type) -> Mapping[str, str]:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    described = issubclass(cls, Described) and cls is not Described and file is not None
    return _texts(file).get(cls.__qualname__, {}) if described else {}


@cache
def _texts(file: str) -> Mapping[str, Mapping[str, str]]:
    """Returns class -> field -> the docstring that follows it; empty without source."""
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return {}
    return {node.name: dict(_fields(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _fields(node: ast.ClassDef) -> list[tuple[str, str]]:
    pairs = zip(node.body, node.body[1:], strict=False)
    return [
        (field.target.id, inspect.cleandoc(text.value.value))
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    ]
