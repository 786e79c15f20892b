"""`expunge methods [NAME]`."""

import inspect
import shutil
import textwrap
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict
from tyro.conf import Positional

if TYPE_CHECKING:
    from expunge.methods.base import Spec

NARROWEST, WIDEST = 60, 120


class Methods(BaseModel):
    """List the methods in plain words, with a first recommendation, or explain one: paper, formula, fields, cost."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: Positional[str | None] = None
    """A method's name; left out, all are listed."""


def run(flags: Methods) -> None:
    from expunge.methods import method_class
    from expunge.methods.guide import ADVICE

    if flags.name is None:
        print(listing(min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)))
        return
    cls = method_class(flags.name)
    print(f"{flags.name} ({cls.family})\n\n{inspect.getdoc(cls)}\n")
    if advice := ADVICE.get(flags.name):
        print(f"for      {advice.purpose}\nweakness {advice.weakness}")
    print(f"paper    {cls.paper}\nformula  {cls.formula}\ncost     {cls.cost}\n")
    for field, info in cls.model_fields.items():
        if field != "name":
            print(f"--{field.replace('_', '-')} (default {info.default})\n    {info.description}")


def listing(width: int) -> str:
    """What to start with, then every method by group: what it is for, its weakness, its cost."""
    from expunge.methods import METHODS
    from expunge.methods.guide import GROUPS, START

    lines = ["Start with:"]
    for have, method, note in START:
        lines += _wrapped(f"{have}: {method} ({note})", width, "  ", "    ")
    for group in GROUPS:
        lines += ["", f"{group.title}. {group.explanation}"] if width >= WIDEST else ["", f"{group.title}."]
        for name, cls in METHODS.items():
            if cls.family in group.families:
                lines += _entry(name, cls, width)
    return "\n".join([*lines, "", "`expunge methods NAME` explains one: paper, formula, fields."])


def _entry(name: str, cls: type["Spec"], width: int) -> list[str]:
    from expunge.methods.guide import ADVICE

    advice = ADVICE.get(name)
    if advice is None:
        return [f"  {name}", *_wrapped(cls.formula, width, "      ", "      ")]
    return [
        *_wrapped(f"{name}: {advice.purpose}", width, "  ", "      "),
        *_wrapped(f"weakness: {advice.weakness}. cost: {cls.cost}", width, "      ", "      "),
    ]


def _wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest)
