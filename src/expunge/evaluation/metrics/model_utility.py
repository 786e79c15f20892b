"""Model utility: harmonic mean of the abilities that should be kept, which is low if any of them is."""

from collections.abc import Sequence

import numpy as np

from expunge.evaluation.metrics.base import Floats, Overall
from expunge.evaluation.statistics import Interval, harmonic_mean, percentiles, resampled

MODEL_UTILITY = Overall(
    question="What is left of the abilities that should stay?",
    formula="harmonic mean of components, each the mean of one metric on one task to keep (truth ratio: max(0, 1 - R))",
    source=(
        "TOFU (Maini et al. 2024, arXiv 2401.06121): nine components, {retain, real authors, world facts} x {probability, "
        "ROUGE-L recall, truth ratio}; other suites say which are theirs"
    ),
    span="0 (at least one component is 0) .. 1",
    not_this="Not comparable between suites, or between readings of the truth ratio (0.623 and 0.586 for the same model).",
    higher_is_better=True,
)


def model_utility(groups: Sequence[Sequence[Floats]]) -> tuple[float, Interval | None]:
    """Returns the value and a 95 % bootstrap interval.

    groups: one per task, each with the per-sample values in 0 .. 1 of its metrics; equally long arrays of one task are
    values of the same samples, and are resampled together.
    """
    means = np.array([values.mean() for group in groups for values in group])
    value = float(harmonic_mean(means))
    paired = [same for group in groups for same in _equally_long(group)]
    if min(len(same[0]) for same in paired) < 2:
        return value, None
    draws = np.stack([draw for group in resampled(paired) for draw in group], axis=-1)
    return value, percentiles(harmonic_mean(draws))


def _equally_long(group: Sequence[Floats]) -> list[list[Floats]]:
    lengths = dict.fromkeys(len(values) for values in group)
    return [[values for values in group if len(values) == length] for length in lengths]
