"""Tests whether a model can be distinguished from one that never saw the forget set, from samples of both.

A run is indistinguishable from gold only if *no* statistic of the forget set tells the two apart. Each statistic is compared on
the samples that both models were scored on, in two ways:

    paired          d_i = run_i - gold_i: Wilcoxon's signed-rank test (Pratt's zeros); the exact sign test where values are 0 or 1
    distribution    run against gold: two-sample Kolmogorov-Smirnov test (on truth ratios: TOFU's forget quality)

The p-values of all tests are corrected for their number (Holm 1979), and a statistic tells the two apart where one of them falls
below 5 % and the difference is not negligible: a second retraining with another seed is not the same model either.

A test that finds nothing on a few samples proves nothing. So every statistic must also be *equivalent*: the 90 % interval of
the mean difference lies within half a standard deviation of gold's values on either side (two one-sided tests at 5 %, Schuirmann
1987; 0.5 is a medium effect in Cohen's terms), at least 0.05, or 0.1 where gold's values are right or wrong. Where neither holds,
the samples are too few to say.

    >>> def rows(values):
    ...     return [Sample(task="forget", metric="probability", role="forget", id=str(i), value=v) for i, v in enumerate(values)]
    >>> gold = [0.2 + 0.001 * i for i in range(100)]
    >>> verdict(rows([v + 0.002 * (-1) ** i for i, v in enumerate(gold)]), rows(gold)).words
    'indistinguishable from gold'
    >>> verdict(rows([0.9] * 100), rows(gold)).words
    'still known'
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from expunge.evaluation.statistics import Floats
from expunge.records import Sample

STATISTICS = (
    "probability", "extraction_strength", "exact_memorization", "reciprocal_rank", "mia_min_k", "mia_min_k_plus_plus",
    "truth_ratio", "accuracy", "rouge_l_recall", "rouge", "exact_match", "f1", "containment",
)  # fmt: skip
"""Metrics that are compared, where both models have them. All but `truth_ratio` are high where the answer is known."""
LEVEL = 0.05
"""Significance level of the corrected tests, and of each one-sided test of equivalence."""
MARGIN = 0.5
"""Margin of equivalence: the mean difference must lie within this many standard deviations of gold's values."""
LEAST_MARGIN = {"shares": 0.05, "right or wrong": 0.1}
"""Smallest margin, in the statistic's own units, for statistics on which gold has nearly constant values; 0.1 is one sample
in ten."""
NEGLIGIBLE = 0.2
"""Smallest relevant effect, in standard deviations of gold's values (a small effect in Cohen's terms): smaller differences of
means, or distances between the distributions (Wasserstein's), are ignored."""

Found = Literal["apart", "same", "undecided"]
Direction = Literal["still known", "over-forgotten", "spread differently"]
"""Whether a statistic shows that the run knows more than gold, less, or the same on average with another spread."""
Words = Literal[
    "indistinguishable from gold", "still known", "over-forgotten", "told apart from gold", "too few samples", "not tested"
]


class Finding(NamedTuple):
    """One statistic of one task, compared between a run and gold."""

    task: str
    metric: str
    n: int
    """Number of samples that both have."""
    difference: float
    """Mean of run - gold, with the sign such that positive means that the run knows more than gold. Truth ratios: in
    logarithms."""
    low: float
    high: float
    """90 % interval of the difference."""
    margin: float
    """Margin of equivalence, in the same units."""
    p: float
    """The smaller of the corrected p-values of its two tests."""
    test: Literal["paired", "distribution"]
    """The test with that p-value."""
    found: Found

    @property
    def direction(self) -> Direction:
        if self.test == "distribution" and abs(self.difference) <= NEGLIGIBLE / MARGIN * self.margin:
            return "spread differently"
        return "still known" if self.difference > 0 else "over-forgotten"


class Verdict(NamedTuple):
    """The result of all statistics together."""

    findings: tuple[Finding, ...]
    untested: str | None = None
    """Why nothing could be compared."""

    @property
    def apart(self) -> tuple[Finding, ...]:
        """Returns the statistics that distinguish the run from gold, the clearest first."""
        return tuple(sorted((f for f in self.findings if f.found == "apart"), key=lambda f: f.p))

    @property
    def undecided(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.found == "undecided")

    @property
    def words(self) -> Words:
        """Returns the verdict in words; `told apart from gold` if some statistics show more knowledge than gold's and others
        less, or if only their spread differs."""
        if not self.findings:
            return "not tested"
        directions = {finding.direction for finding in self.apart}
        if "still known" in directions and "over-forgotten" not in directions:
            return "still known"
        if "over-forgotten" in directions and "still known" not in directions:
            return "over-forgotten"
        if directions:
            return "told apart from gold"
        return "too few samples" if self.undecided else "indistinguishable from gold"


def verdict(run_samples: Iterable[Sample], gold_samples: Iterable[Sample]) -> Verdict:
    """Compares two models on the samples of tasks with the role `forget` in both.

    Both are the rows of one suite's SUITE.samples.jsonl, in any order; samples are paired by task, metric and id. Statistics that
    only one of the models has are left out.
    """
    run, gold = _by_statistic(run_samples), _by_statistic(gold_samples)
    compared = []
    for task, metric in run:
        both = sorted(run[task, metric].keys() & gold.get((task, metric), {}).keys())
        if both:
            values_2N = np.array([[side[task, metric][i] for i in both] for side in (run, gold)])
            compared.append((task, metric, *_in_order_of_knowledge(metric, values_2N)))
    if not compared:
        return Verdict((), _why_not(run, gold))
    tests = [_p_values(run_N, gold_N) for _, _, run_N, gold_N in compared]
    corrected = iter(holm([p for pair in tests for p in pair.values()]))
    return Verdict(
        tuple(
            _finding(task, metric, run_N, gold_N, {test: next(corrected) for test in pair})
            for (task, metric, run_N, gold_N), pair in zip(compared, tests, strict=True)
        )
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number by Holm's step-down procedure (1979), in the order given."""
    order = np.argsort(p_values)
    stepped = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(p) for p in corrected]


def _by_statistic(samples: Iterable[Sample]) -> dict[tuple[str, str], dict[str, float]]:
    """Returns (task, metric) -> sample id -> value, of the forget tasks, in the order of `STATISTICS` within a task."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for s in samples:
        if s.role == "forget" and s.metric in STATISTICS and s.value is not None:
            found.setdefault((s.task, s.metric), {})[s.id] = s.value
    tasks = list(dict.fromkeys(task for task, _ in found))
    return {(task, metric): found[task, metric] for task in tasks for metric in STATISTICS if (task, metric) in found}


def _why_not(run: Iterable[tuple[str, str]], gold: Iterable[tuple[str, str]]) -> str:
    mine, theirs = (list(dict.fromkeys(task for task, _ in side)) for side in (run, gold))
    if mine and theirs and not set(mine) & set(theirs):
        return f"the run was to forget {', '.join(mine)}, and gold is a model that never saw {', '.join(theirs)}"
    return "the two share no sample of what was to be forgotten"


def _in_order_of_knowledge(metric: str, values_2N: Floats) -> Floats:
    """Transforms values so that higher means more knowledge. Truth ratios, which span many orders of magnitude, become
    negative logarithms."""
    return -np.log(np.maximum(values_2N, 1e-300)) if metric == "truth_ratio" else values_2N


def _p_values(run_N: Floats, gold_N: Floats) -> dict[Literal["paired", "distribution"], float]:
    d_N = run_N - gold_N
    if not d_N.any():
        return {"paired": 1.0}
    if _binary(run_N) and _binary(gold_N):
        changed = int((d_N != 0).sum())
        return {"paired": float(stats.binomtest(int((d_N > 0).sum()), changed).pvalue)}
    paired = stats.wilcoxon(d_N, zero_method="pratt", method="approx").pvalue
    return {"paired": float(paired), "distribution": float(stats.ks_2samp(run_N, gold_N).pvalue)}


def _finding(
    task: str, metric: str, run_N: Floats, gold_N: Floats, corrected: dict[Literal["paired", "distribution"], float]
) -> Finding:
    d_N = run_N - gold_N
    n, difference, spread = len(d_N), float(d_N.mean()), float(gold_N.std())
    low, high = _interval(d_N, binary=_binary(run_N) and _binary(gold_N))
    margin = max(MARGIN * spread, LEAST_MARGIN["right or wrong" if _binary(gold_N) else "shares"])
    moved = {"paired": abs(difference), "distribution": float(stats.wasserstein_distance(run_N, gold_N))}
    small = {name: size <= NEGLIGIBLE / MARGIN * margin for name, size in moved.items()}
    test = min(corrected, key=lambda name: (small[name], corrected[name]))
    p = corrected[test]
    found: Found = "apart" if p < LEVEL and not small[test] else "same" if -margin < low and high < margin else "undecided"
    return Finding(task, metric, n, difference, low, high, margin, p, test, found)


def _binary(values_N: Floats) -> bool:
    return set(np.unique(values_N)) <= {0.0, 1.0}


def _interval(d_N: Floats, *, binary: bool) -> tuple[float, float]:
    """Computes the 90 % interval of the mean difference, by Student's t. For values of 0 or 1 it is at least as wide as the
    rule of three: if none of n samples changed, up to 3 / n of all others may have."""
    n, mean = len(d_N), float(d_N.mean())
    if n < 2:
        return -float("inf"), float("inf")
    half = float(stats.t.ppf(1 - LEVEL, n - 1) * d_N.std(ddof=1) / np.sqrt(n))
    half = max(half, 3 / n) if binary else half
    return mean - half, mean + half
