"""Average similarity gap: how differently the model's texts resemble the forgotten ones, compared with a retain model's."""

from collections.abc import Mapping

import numpy as np

from expunge.evaluation.metrics.base import Overall, Unscored

SIMILARITY_GAP = Overall(
    question="Do the model's continuations resemble the forgotten texts as much as those of a model that never saw them?",
    formula="mean over measures m of | mean of m(unlearned, text) - mean of m(retain model, text) |",
    source="the average similarity gap of ECO (Liu et al. 2024, arXiv 2406.07933), whose released code lacks it",
    span="0 (alike on average) .. 1",
    not_this=(
        "Not a distance of texts: two models may differ on every text and agree on average. Not comparable between sets of "
        "measures: those that are not available are named."
    ),
    higher_is_better=False,
)


def similarity_gap(mine: Mapping[str, Mapping[str, float]], retained: Mapping[str, Mapping[str, float]]) -> float | Unscored:
    """Computes the gap from measure -> example id -> value of either model, on the examples of the first."""
    gaps = []
    for measure, values in mine.items():
        missing = sum(id not in retained[measure] for id in values)
        if missing:
            return Unscored(f"the retain model's scores lack {missing} of {len(values)} texts; evaluate it on the same")
        if not values:
            return Unscored(f"no text has a value of {measure}")
        gaps.append(abs(float(np.mean([value - retained[measure][id] for id, value in values.items()]))))
    return float(np.mean(gaps)) if gaps else Unscored("there are no texts to compare")
