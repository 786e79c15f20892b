"""Sets the score above which a gate flags a prompt, from the scores of calibration prompts that the gate was not trained on.

    fixed              as given
    simple             the smallest threshold that flags at most a share alpha of retain prompts; where forget prompts score far
                       higher it is raised to the largest score of a retain prompt, so that none need be flagged, but by no more
                       than a quarter of the way to the lowest score of a forget prompt
    conformal          split conformal prediction over both classes together: the set {y : 1 - p(y) <= q} contains the true class
                       with probability 1 - alpha; a prompt is flagged if the set is {forget}
    class_conditional  the same with one q per class, so that the probability holds within each class

q is the ceil((n + 1)(1 - alpha))-th smallest 1 - p(true class) of n calibration prompts. For `simple` and `class_conditional` a
fresh retain prompt is flagged with a probability of at most alpha, if it is exchangeable with the calibration prompts. With
general prompts every rule but `fixed` is raised until the same holds for them too: a gate that tells retain prompts easily has a
threshold so low that other harmless prompts are above it. Where fewer than 1/alpha - 1 are given, their largest score counts.
Source: Vovk et al. 2005; the rule that fits ECO's gate is not published, and neither is its treatment of the sets {} and {forget,
retain}: here they count as retain, or with `cautious` as forget.
"""

import math
from typing import Final

import torch
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.guarding.embedding_corruption.kinds import Rule

ROOM: Final = 0.25
"""Share of the way from the smallest allowed threshold to the lowest forget prompt that `simple` may go: forget prompts in other
words or in disguise score lower than those that the gate was trained on."""


def threshold(
    rule: Rule,
    forget_N: Tensor,
    retain_N: Tensor,
    alpha: float,
    *,
    general_N: Tensor | None = None,
    fixed: float = 0.99,
    cautious: bool = False,
) -> float:
    """Returns the score above which (strictly) a prompt is flagged.

    forget_N, retain_N  p(forget) of calibration prompts of either class
    general_N           of general prompts that the gate was not trained on

    Raises ExpungeError if there are too few calibration prompts for alpha.
    """
    if rule == "fixed":
        return fixed
    found = _calibrated(rule, forget_N, retain_N, alpha, cautious)
    if general_N is None or not len(general_N):
        return found
    return max(found, _quantile(general_N, max(alpha, 1 / (len(general_N) + 1)), "general"))


def _calibrated(rule: Rule, forget_N: Tensor, retain_N: Tensor, alpha: float, cautious: bool) -> float:
    match rule:
        case "simple":
            least = _quantile(retain_N, alpha, "retain")
            highest = float(retain_N[retain_N < 1].max()) if (retain_N < 1).any() else 1.0  # 1 is flagged by any threshold
            return max(least, min(highest, least + ROOM * (float(forget_N.min()) - least)))
        case "conformal":
            both = _quantile(torch.cat([1 - forget_N, retain_N]), alpha, "forget and retain")
            return _flagging(both, both, cautious)
        case _:  # class_conditional
            return _flagging(_quantile(1 - forget_N, alpha, "forget"), _quantile(retain_N, alpha, "retain"), cautious)


def _flagging(forget_q: float, retain_q: float, cautious: bool) -> float:
    """Combines the thresholds: forget is in the set where p >= 1 - forget_q, retain where p <= retain_q."""
    above = math.nextafter(1 - forget_q, -math.inf)
    return min(above, retain_q) if cautious else max(above, retain_q)


def _quantile(values_N: Tensor, alpha: float, which: str) -> float:
    """Returns the ceil((n + 1)(1 - alpha))-th smallest value."""
    rank = math.ceil((len(values_N) + 1) * (1 - alpha) - 1e-9)
    if rank > len(values_N):
        raise ExpungeError(
            f"{len(values_N)} {which} prompts are too few to calibrate an error rate of {alpha:g}: at least "
            f"{math.ceil(1 / alpha) - 1} are needed; give more, or raise --false-positive-rate"
        )
    return float(values_N.double().sort().values[rank - 1])
