"""`expunge suites [NAME]`."""

import inspect

from pydantic import BaseModel, ConfigDict
from tyro.conf import Positional


class Suites(BaseModel):
    """List the evaluation suites, or explain one; a metric's name explains the metric."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: Positional[str | None] = None
    """A suite or a metric; left out, all are listed."""


def run(flags: Suites) -> None:
    from expunge.errors import ExpungeError, nearest
    from expunge.evaluation.metrics import METRICS
    from expunge.evaluation.suites import SUITES

    if flags.name is None:
        print("suites")
        for name, suite in SUITES.items():
            print(f"  {name:<22} {suite.source}")
        print("metrics")
        for name, metric in METRICS.items():
            print(f"  {name:<22} {metric.formula}")
        return
    if flags.name not in SUITES and flags.name not in METRICS:
        raise ExpungeError(f"there is no suite or metric '{flags.name}'{nearest(flags.name, [*SUITES, *METRICS])}")
    if flags.name in SUITES:
        suite = SUITES[flags.name]
        print(f"{flags.name}\n\n{inspect.getdoc(suite)}\n\nsource  {suite.source}\ndata    {suite.layout}\n")
        for field, info in suite.model_fields.items():
            if field != "name":
                print(f"--{field.replace('_', '-')} (default {info.default})\n    {info.description}")
    if flags.name in METRICS:
        metric = METRICS[flags.name]
        also = "\nThe metric of this name:\n\n" if flags.name in SUITES else ""
        print(
            f"{also}{flags.name}\n\n{inspect.getdoc(metric)}\n\nformula  {metric.formula}\nrange    {metric.span}\n"
            f"source   {metric.source}\nnot      {metric.not_this}"
        )
