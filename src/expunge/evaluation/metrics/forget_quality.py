"""Forget quality: can the unlearned model's truth ratios be told from those of a model that never saw the forget set?

    p-value of the two-sample Kolmogorov-Smirnov test between the raw truth ratios of the two models on the forget set

Source: TOFU (Maini et al. 2024, arXiv 2401.06121), two-sided, on the raw ratios R. Folded ratios
min(R, 1/R) hide that right answers became more probable than wrong ones or less: two clearly different models then pass.
Range: 0 (certainly different) .. 1 (no difference seen); higher is better.
Not this: not a probability that the model forgot. It is about one number per question and can be met while other traces
remain; with few samples it is high for any model, so look at n.
"""

from expunge.evaluation.metrics.base import Floats, Unscored
from expunge.evaluation.statistics import ks_2samp

FORMULA = "KS two-sample p-value between raw truth ratios on forget and those of a model trained without the forget set"


def forget_quality(ratios: Floats, retain_ratios: Floats) -> float | Unscored:
    """ratios, retain_ratios: raw truth ratios of the two models, any order, lengths may differ."""
    if not len(ratios) or not len(retain_ratios):
        return Unscored("there are no truth ratios to compare")
    return ks_2samp(ratios, retain_ratios)
