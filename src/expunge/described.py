"""Describes pydantic fields by their docstrings, at a tenth of the cost of pydantic's own implementation.

pydantic (`use_attribute_docstrings`) takes each class's source through Python's tokenizer: 0.2 s of every start for our methods,
metrics and suites. Here each file is parsed once.
"""

import ast
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel


class Described(BaseModel):
    """Base of classes whose fields have docstrings, which become their descriptions in `--help` and `expunge methods NAME`."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        texts = _texts(file).get(cls.__qualname__, {}) if file is not None else {}
        for name, field in cls.__pydantic_fields__.items():
            if field.description is None:
                field.description = texts.get(name, "")  # tyro would search all sources of the class for one that is None


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
