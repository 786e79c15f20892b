"""Every metric of the closed lists explains itself, and says exactly what it has to know about an example."""

import ast
import re
from pathlib import Path
from types import MappingProxyType
from typing import get_args

import numpy as np
import pytest
from pydantic import TypeAdapter

import expunge.evaluation.metrics as package
from expunge.data.example import Example
from expunge.evaluation.explain import direction, metric_text, overall_text
from expunge.evaluation.judges import Keywords
from expunge.evaluation.metrics import (
    METRICS,
    OVERALL,
    AnyMetric,
    Metric,
    MiaGradnorm,
    MiaMinK,
    PassAt1,
    Probability,
    PromptCut,
    Row,
    TokenStats,
    TruthRatio,
)
from expunge.evaluation.metrics.base import Need
from expunge.evaluation.token_stats import NOTHING, TokenDistribution

JUDGE = Keywords(words=("blurky",))
JUDGED = ("toxicity", "toxic_rate", "expected_maximum_toxicity", "toxicity_probability", "truthful_rate")
NEEDED: dict[str, dict[str, object]] = {
    "harmful_rate": {"words": ("blurky",)},
    "similarity": {"before": "a"},
    "pass_at_1": {"allow_code_execution": True},
    **{name: {"judge": JUDGE} for name in JUDGED},
}
EVERY = {name: cls.model_validate({"name": name, **NEEDED.get(name, {})}) for name, cls in METRICS.items()}
SETTINGS = [
    *EVERY.values(),
    Probability(among_perturbed=True),
    TruthRatio(compat=True),
    MiaMinK(compat=True),
    MiaGradnorm(compat=True),
]

BARE = Example("which number ?", "x = 5 .", attributes={"tests": "assert x == 5"})
WORDED = Example("which number ?", "x = 5 .", paraphrases=("x is 5 .",), perturbed=("x = 6 .", "x = 7 ."))
CHOSEN = Example("which number ?", "x = 5 .", choices=("x = 6 .", "x = 5 ."), answer=1)
YES = Example("is x 5 ?", "Yes")


def stats(seed: int, tokens: int = 5) -> TokenStats:
    rng = np.random.default_rng(seed)
    spread = TokenDistribution(np.arange(tokens), -rng.random(tokens, np.float32), rng.random(tokens, np.float32))
    return TokenStats(-rng.random(tokens, np.float32), rng.random(tokens) < 0.6, True, spread)


def whole(metric: Metric, example: Example) -> Row:
    """A row in which all is known."""
    return Row(
        example,
        answer=stats(0),
        paraphrases=tuple(stats(10 + i) for i in range(len(example.paraphrases))),
        perturbed=tuple(stats(20 + i) for i in range(len(example.perturbed))),
        choices=tuple(stats(30 + i) for i in range(len(example.choices))),
        generated="yes" if example is YES else "x = 5\n# x = 5 x = 5 x = 5",
        gradient_norm=0.5,
        gradient_norm_without_last=0.5,
        judged=MappingProxyType(dict.fromkeys(metric.judges, 0.25)),
        sampled=("x", "y"),
        judged_samples=MappingProxyType(dict.fromkeys(metric.judges, (0.25, 0.75))),
    )


def without(row: Row, need: Need) -> Row:
    match need:
        case "answer":
            return row._replace(answer=NOTHING)
        case "distribution":
            return row._replace(answer=row.answer._replace(distribution=None))
        case "generated":
            return row._replace(generated=None)
        case "gradient":
            return row._replace(gradient_norm=None)
        case "gradient_without_last":
            return row._replace(gradient_norm_without_last=None)
        case _:
            return row._replace(**{need: ()})


def scored(metric: Metric, row: Row) -> object:
    try:
        return metric.score(row)
    except (ValueError, IndexError) as error:
        return error


@pytest.mark.parametrize("metric", SETTINGS, ids=lambda metric: metric.metric_name())
@pytest.mark.parametrize("example", [BARE, WORDED, CHOSEN], ids=["bare", "worded", "chosen"])
def test_what_a_metric_says_it_needs_is_what_it_reads(metric: Metric, example: Example) -> None:
    """No more than it needs, so that nothing is computed in vain; no less, so that nothing that it reads is missing."""
    row, needs = whole(metric, example), metric.needs_of(example)
    expected = scored(metric, row)
    spare: set[Need] = set(get_args(Need)) - needs
    if "answer" in spare:
        spare.discard("distribution")  # gone with the answer
    bare = row
    for need in sorted(spare):
        bare = without(bare, need)
    assert scored(metric, bare) == expected
    if isinstance(expected, float):
        for need in needs:
            assert scored(metric, without(row, need)) != expected, need
    if not needs and example is BARE:
        assert isinstance(metric, PromptCut) or metric.metric_name() == "accuracy_normalized"


def test_each_metric_scores_one_of_the_examples() -> None:
    for metric in SETTINGS:
        assert any(isinstance(scored(metric, whole(metric, e)), float) for e in (BARE, WORDED, CHOSEN, YES)), metric.metric_name()


def test_code_that_may_not_run_is_not_written_either() -> None:
    assert PassAt1().needs_of(BARE) == frozenset()


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_every_metric_says_formula_range_direction_source_and_what_it_is_not(metric: type[Metric]) -> None:
    text = metric_text(metric)
    assert metric.__doc__ in (metric.__dict__["__doc__"],), "a docstring of its own"
    assert all(part in " ".join(text.split()) for part in (metric.formula, metric.span, metric.source, metric.not_this))
    assert len(metric.formula) > 15
    assert re.search(r"\d", metric.span), "numbers"
    assert re.search(r"\d{4}|own|data|script", metric.source), "a year, or whose it is"
    assert metric.not_this.startswith(("Not ", "text: ", "On choices"))
    assert direction(metric)
    for name, info in metric.model_fields.items():
        assert name == "name" or (info.description or "").endswith((".", ")")), name


@pytest.mark.parametrize("name", OVERALL)
def test_every_score_over_several_tasks_says_the_same(name: str) -> None:
    overall, text = OVERALL[name], " ".join(overall_text(name, OVERALL[name]).split())
    assert all(part in text for part in (overall.formula, overall.span, overall.source, overall.not_this, direction(overall)))
    assert overall.question.endswith("?")
    assert overall.not_this.startswith("Not ")
    assert name not in METRICS


@pytest.mark.parametrize("metric", EVERY.values(), ids=EVERY.keys())
def test_every_metric_survives_json(metric: Metric) -> None:
    assert TypeAdapter(AnyMetric).validate_json(metric.model_dump_json()) == metric


def test_the_lists_are_closed_and_are_the_same() -> None:
    union, _ = get_args(AnyMetric)
    assert set(get_args(union)) == set(METRICS.values())
    files = [path for path in Path(str(package.__file__)).parent.glob("*.py") if path.stem != "__init__"]
    defined = {
        node.name
        for path in files
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and any("name: Literal" in ast.unparse(line) for line in node.body)
    }
    assert defined == {metric.__name__ for metric in METRICS.values()}
