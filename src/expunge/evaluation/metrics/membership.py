"""Membership inference: separates texts that the model was trained on from others of the same kind.

Each attack gives one number per text, higher = more like a member. Forget texts are the members, holdout texts (of the same
kind, never seen) the others; the score of an attack is

    AUC = P(score of a forget text > score of a holdout text), ties half

1 = the forget set is clearly memorized, 0.5 = it cannot be distinguished from the holdout set, below 0.5 = it looks less familiar
than texts never seen, which also identifies it. The goal is the AUC of a model that never saw the forget set: about 0.5, and
exactly 0.5 only if the two sets are of the same kind.

MUSE reports AUC' = 1 - AUC, with the holdout texts as positives. Both are kept: `mia_*` are AUC, `privleak` is MUSE's.
"""

from typing import ClassVar, NamedTuple

import numpy as np

from expunge.evaluation.metrics.base import Floats, Good, Metric, Overall, Unscored
from expunge.evaluation.statistics import Interval, auc, auc_draws, percentiles

AUC_SPAN = "AUC 0 .. 1: 1 = the forget set is clearly memorized, 0.5 = cannot be told from the holdout set, 0 = clearly avoided"
AUC_NOT = (
    "Not proof of forgetting at 0.5: a weak attack finds nothing in a model that remembers. Not comparable between data sets: "
    "topics or dates that differ between the two sets move the AUC of a model that saw neither; compare with a retain model. "
)


PRIVLEAK = Overall(
    question="Does min-k% tell forget from holdout texts as well as it does for a model that never saw the forget set?",
    formula="100 (AUC' - AUC'_retain) / AUC'_retain, with AUC' = 1 - AUC of mia_min_k",
    source="MUSE (Shi et al. 2024, arXiv 2407.06460), in its convention: holdout texts are the positives",
    span="-100 (forget set fully exposed as members) .. 0 (as the retain model) .. large positive (over-forgotten)",
    not_this=(
        "Not comparable between retain models: MUSE's own constants (0.4772 News, 0.5393 Books) are right for its retrained "
        "models only. A model that was broken altogether is far from 0 too."
    ),
    higher_is_better=None,
)
RELATIVE_DIFFERENCE = Overall(
    question="How far is an attack's AUC from the retain model's?",
    formula="100 (AUC - AUC_retain) / AUC_retain, for each attack: mia_loss_relative_difference, ...",
    source="open-unlearning's rel_diff, on AUC as printed here; both models' samples are resampled together for the interval",
    span="-100 .. 0 (as the retain model) .. large positive (more exposed than it)",
    not_this="Not a share of texts that leak: AUC is about ranks of texts, and a few exposed ones move it little.",
    higher_is_better=None,
)
MIA_REFERENCE = Overall(
    question="Does the model find forget texts more probable than another model of the same language does?",
    formula="AUC over forget and holdout of mia_loss under this model minus mia_loss under the reference model",
    source="Carlini et al. 2021 (arXiv 2012.07805); open-unlearning's mia_reference",
    span=AUC_SPAN,
    not_this=AUC_NOT + "As good as the reference: one that saw the forget set hides it, one of another domain adds noise.",
    higher_is_better=None,
)


class MembershipMetric(Metric):
    """Base class of attacks: one number per text, from which the AUC over forget and holdout texts is computed."""

    span: ClassVar[str] = AUC_SPAN
    good: ClassVar[Good] = "knowledge"
    stands_alone: ClassVar[bool] = False


class Attacked(NamedTuple):
    """The scores of one attack on the two sets."""

    forget: Floats
    holdout: Floats


class Estimate(NamedTuple):
    value: float
    interval: Interval | None


def membership_auc(scores: Attacked) -> Estimate | Unscored:
    """Computes the AUC with its 95 % bootstrap interval; both sets are resampled."""
    if reason := _missing(scores):
        return reason
    interval = None if min(map(len, scores)) < 2 else percentiles(auc_draws(*scores))
    return Estimate(auc(*scores), interval)


def privleak(scores: Attacked, retain: Attacked | float) -> Estimate | Unscored:
    """Computes 100 (AUC' - AUC'_retain) / AUC'_retain with AUC' = 1 - AUC.

    retain   the retain model's scores on the same texts in the same order, or its AUC' as MUSE prints it. Scores are resampled
             together with the model's, so that the interval is that of the difference; a single number counts as exact
    """
    return _relative(scores, retain if isinstance(retain, Attacked) else 1.0 - retain, members_positive=False)


def relative_difference(scores: Attacked, retain: Attacked) -> Estimate | Unscored:
    """Computes 100 (AUC - AUC_retain) / AUC_retain: the relative difference from the retain model's AUC, in percent."""
    return _relative(scores, retain, members_positive=True)


def _relative(scores: Attacked, retain: Attacked | float, *, members_positive: bool) -> Estimate | Unscored:
    if reason := _missing(scores) or (_missing(retain) if isinstance(retain, Attacked) else None):
        return reason
    mine, base = np.array(auc(*scores)), np.array(auc(*retain) if isinstance(retain, Attacked) else retain)
    draws = None if min(map(len, scores)) < 2 else auc_draws(*scores)
    bases = auc_draws(*retain) if isinstance(retain, Attacked) and draws is not None else base
    if not members_positive:
        mine, base, bases = 1.0 - mine, 1.0 - base, 1.0 - bases
        draws = None if draws is None else 1.0 - draws
    if base <= 0:
        return Unscored("the retain model's AUC is 0 in this convention, so that nothing can be related to it")
    interval = None
    if draws is not None and (np.asarray(bases) > 0).all():
        interval = percentiles(100.0 * (draws - bases) / bases)
    return Estimate(float(100.0 * (mine - base) / base), interval)


def _missing(scores: Attacked) -> Unscored | None:
    for name, values in zip(scores._fields, scores, strict=True):
        if not len(values):
            return Unscored(f"no {name} text has a score")
    return None
