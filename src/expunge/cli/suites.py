"""`expunge suites [NAME]`."""

from collections.abc import Mapping

from pydantic import ConfigDict
from tyro.conf import Positional

from expunge.described import Described


class Suites(Described):
    """List the evaluation suites, or explain one; a metric's name explains the metric."""

    model_config = ConfigDict(frozen=True)

    name: Positional[str | None] = None
    """A suite or a metric; default: list all suites."""


def run(flags: Suites) -> None:
    from expunge.cli.evaluate import Evaluate
    from expunge.errors import ExpungeError, nearest
    from expunge.evaluation.explain import metric_text, overall_text, suite_text
    from expunge.evaluation.metrics import METRICS, OVERALL
    from expunge.evaluation.suites import SUITES

    if flags.name is None:
        _list("suites", {name: suite.purpose for name, suite in SUITES.items()})
        _list("metrics", {name: metric.formula for name, metric in METRICS.items()})
        _list("scores over several tasks", {name: overall.formula for name, overall in OVERALL.items()})
        print("`expunge suites NAME` explains each of them.")
        return
    name = "relative_difference" if flags.name.endswith("_relative_difference") else flags.name
    texts = []
    if name in SUITES:
        texts.append(suite_text(SUITES[name], Evaluate.model_fields))
    if name in METRICS:
        texts.append(("The metric of this name:\n\n" if texts else "") + metric_text(METRICS[name]))
    if name in OVERALL:
        texts.append(overall_text(name, OVERALL[name]))
    if not texts:
        known = nearest(name, [*SUITES, *METRICS, *OVERALL])
        raise ExpungeError(f"there is no suite or metric '{name}'{known}; `expunge suites` lists them all")
    print("\n\n".join(texts))


def _list(title: str, lines: Mapping[str, str]) -> None:
    print(title)
    for name, text in lines.items():
        print(f"  {name:<26} {text}")
