"""Describes suites and metrics, for `expunge suites` and for the tables of docs/evaluation.md.

python -m expunge.evaluation.explain docs/evaluation.md     updates the tables of the page
"""

import inspect
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel

from expunge.evaluation.metrics import METRICS, OVERALL, Metric, Overall
from expunge.evaluation.suites import SUITES, SuiteSpec
from expunge.records import Role, write_text

WIDTH = 120
UP, DOWN = "\u2191", "\u2193"
RETAIN_MODEL = "none: the goal is the value of a model that never saw the forget set, and both sides of it give a model away"


def suite_text(suite: type[SuiteSpec], flags: Collection[str]) -> str:
    """Describes a suite; flags: its fields that are flags of the command line."""
    scored = [(part.tasks, ", ".join(_directed(metric, part.role) for metric in part.metrics)) for part in suite.scored]
    lines = [
        *(f"{suite.suite_name()}: {suite.purpose}", "", inspect.getdoc(suite) or "", ""),
        *(_entry("source", suite.source), _entry("data", suite.layout), ""),
        f"scores, by task ({UP} high is good, {DOWN} low is good)",
        *(_entry(f"  {tasks}:", metrics, 4) for tasks, metrics in scored),
        "",
        *_fields(suite, lambda name: f"--{name.replace('_', '-')}" if name in flags else f"--options {name}=..."),
    ]
    return "\n".join(lines).rstrip()


def metric_text(metric: type[Metric]) -> str:
    """Describes a metric of single examples."""
    name = metric.metric_name()
    lines = [*(name, "", inspect.getdoc(metric) or "", ""), *_explained(metric, direction(metric))]
    fields = list(_fields(metric, lambda field: f"{field}: ..."))
    return "\n".join([*lines, *(["", f"in the file of the suite custom: {{name: {name}, ...}} with"] if fields else []), *fields])


def overall_text(name: str, overall: Overall) -> str:
    """Describes a score over several tasks."""
    return "\n".join([name, "", overall.question, "", *_explained(overall, direction(overall))])


def direction(metric: type[Metric] | Overall) -> str:
    """Describes the direction of good."""
    if isinstance(metric, Overall):
        return {True: "high is good", False: "low is good", None: RETAIN_MODEL}[metric.higher_is_better]
    if not metric.stands_alone:
        return RETAIN_MODEL
    forget, retain, neutral = (metric.model_construct().higher_is_better(role) for role in ("forget", "retain", "neutral"))
    if forget == retain == neutral:
        return "high is good" if forget else "low is good"
    words = {True: "high", False: "low", None: "no direction"}
    return f"{words[forget]} is good on what was to be forgotten, {words[retain]} on what should stay"


def metric_table() -> str:
    """Makes the table of formula, range and direction of every metric, as Markdown."""
    rows = [(name, metric.formula, metric.span, _short(metric)) for name, metric in METRICS.items()]
    rows += [(_shown(name), overall.formula, overall.span, _short(overall)) for name, overall in OVERALL.items()]
    return _table(("metric", "formula", "range", "good"), rows)


def source_table() -> str:
    """Makes the table of where each metric comes from and what it is not, as Markdown."""
    rows = [(name, metric.source, metric.not_this) for name, metric in METRICS.items()]
    rows += [(_shown(name), overall.source, overall.not_this) for name, overall in OVERALL.items()]
    return _table(("metric", "source", "what it is not"), rows)


def suite_table() -> str:
    """Makes the table of suites, as Markdown."""
    rows = [
        (name, suite.purpose, suite.layout, "; ".join(f"{part.tasks}: {_names(part.metrics)}" for part in suite.scored))
        for name, suite in SUITES.items()
    ]
    return _table(("suite", "measures", "data", "scores, by task"), rows)


TABLES = {"suites": suite_table, "metrics": metric_table, "sources": source_table}


def filled(page: str) -> str:
    """Replaces the tables of a page, between `<!-- NAME -->` and `<!-- /NAME -->`, by those of the code."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{table()}\n{end}{rest.partition(end)[2]}"
    return page


def _name(metric: str | Metric) -> str:
    return metric if isinstance(metric, str) else metric.metric_name()


def _directed(metric: str | Metric, role: Role) -> str:
    name = _name(metric)
    if name in OVERALL:
        higher = OVERALL[name].higher_is_better
    else:
        known = METRICS[name].model_construct() if isinstance(metric, str) and name in METRICS else metric
        higher = known.higher_is_better(role) if isinstance(known, Metric) and known.stands_alone else None
    return name if higher is None else f"{name} {UP if higher else DOWN}"


def _explained(metric: type[Metric] | Overall, good: str) -> list[str]:
    return [
        _entry("formula", metric.formula),
        _entry("range", metric.span),
        _entry("good", good),
        _entry("source", metric.source),
        _entry("not", metric.not_this),
    ]


def _fields(model: type[BaseModel], spelled: Callable[[str], str]) -> Iterable[str]:
    for name, info in model.model_fields.items():
        if name != "name":
            default = "needed" if info.is_required() else f"default {_plain(info.get_default(call_default_factory=True))}"
            yield f"{spelled(name)}    ({default})"
            yield textwrap.indent(textwrap.fill(" ".join((info.description or "").split()), WIDTH - 4), "    ")


def _plain(value: object) -> str:
    """Formats a default as it would be written on the command line."""
    if value in (None, "", ()):
        return "none"
    return (
        ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _entry(label: str, text: str, indent: int = 9) -> str:
    first = f"{label:<8} " if indent == 9 else f"{label}\n{' ' * indent}"
    return first + textwrap.fill(
        text, WIDTH - indent, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def _names(metrics: Sequence[str | Metric]) -> str:
    return "any metric" if set(metrics) >= set(METRICS) else ", ".join(map(_name, metrics))


def _short(metric: type[Metric] | Overall) -> str:
    words = direction(metric)
    arrows = {"high": UP, "low": DOWN}
    if words == RETAIN_MODEL:
        return "as retained"
    first = arrows[words.split(" ")[0]]
    return first if words.endswith("is good") else f"forget {first}, keep {DOWN if first == UP else UP}"


def _shown(name: str) -> str:
    return "ATTACK_relative_difference" if name == "relative_difference" else name


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *((f"`{row[0]}`", *row[1:]) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        write_text(file, filled(file.read_text(encoding="utf-8")))
