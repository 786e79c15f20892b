"""Forget quality: p-value of a test that compares truth ratios with those of a model that never saw the forget set."""

from expunge.evaluation.metrics.base import Floats, Overall, Unscored
from expunge.evaluation.statistics import ks_2samp

FORGET_QUALITY = Overall(
    question="Can the model's truth ratios on the forget set be told from those of a model that never saw it?",
    formula="p-value of the two-sided two-sample Kolmogorov-Smirnov test between the raw truth ratios R of the two models",
    source=(
        "TOFU (Maini et al. 2024, arXiv 2401.06121), on raw ratios. Folded ones, min(R, 1/R), as in ECO's released code, hide "
        "that right answers became more probable than wrong ones or less: two clearly different models then pass"
    ),
    span="0 (certainly different) .. 1 (no difference seen); above 0.05 they cannot be told apart on this many samples",
    not_this=(
        "Not a probability that the model forgot. It is about one number per question and can be met while other traces remain; "
        "with few samples it is high for any model, so look at n. Not comparable between readings of the truth ratio."
    ),
    higher_is_better=True,
)


def forget_quality(ratios: Floats, retain_ratios: Floats) -> float | Unscored:
    """Computes the p-value. ratios, retain_ratios: raw truth ratios of the two models, any order, lengths may differ."""
    if not len(ratios) or not len(retain_ratios):
        return Unscored("there are no truth ratios to compare")
    return ks_2samp(ratios, retain_ratios)
