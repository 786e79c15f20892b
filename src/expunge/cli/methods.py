"""`expunge methods [NAME]`."""

import inspect

from pydantic import BaseModel, ConfigDict
from tyro.conf import Positional


class Methods(BaseModel):
    """List the methods, or explain one: paper, formula, fields, cost."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: Positional[str | None] = None
    """A method's name; left out, all are listed."""


def run(flags: Methods) -> None:
    from expunge.methods import METHODS, method_class

    if flags.name is None:
        for name, cls in METHODS.items():
            print(f"{name:<22} {cls.family:<10} {cls.formula}")
        return
    cls = method_class(flags.name)
    print(f"{flags.name} ({cls.family})\n\n{inspect.getdoc(cls)}\n")
    print(f"paper    {cls.paper}\nformula  {cls.formula}\ncost     {cls.cost}\n")
    for field, info in cls.model_fields.items():
        if field != "name":
            print(f"--{field.replace('_', '-')} (default {info.default})\n    {info.description}")
