"""Membership: distinguishes the forgotten facts from never-seen ones by the model's scores, whatever it answers."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from expunge.attacks.base import AttackSpec, Found, Preset, Scene, Way
from expunge.attacks.knowledge import Facts, Floats
from expunge.attacks.target import Target
from expunge.evaluation.metrics import MiaLoss, MiaMinK
from expunge.evaluation.metrics.base import Metric, Row, Unscored
from expunge.evaluation.metrics.mia_min_k_plus_plus import MiaMinKPlusPlus
from expunge.evaluation.metrics.mia_zlib import MiaZlib

LEAST = 10
"""Smallest number of never-known subjects for a control: half of them are compared with the other half."""


class Membership(AttackSpec):
    """Compares loss, zlib, min-k and min-k++ of every fact with those of never-known facts.

    The value of a fact is the share of these that score below it, so that the mean is the AUC. Both directions count: facts
    that score below never-seen ones are identified as well as those above.
    """

    paper: ClassVar[str] = "Shi et al. 2023 (arXiv 2310.16789, 2407.06460); Zhang et al. 2024 (arXiv 2404.02936)"
    does: ClassVar[str] = "tells forgotten facts from never-seen ones by their scores"
    presets: ClassVar[Mapping[str, Preset]] = {"paper": Preset({"k": 0.4}, "MUSE: min-40 %")}

    name: Literal["membership"] = "membership"
    k: float = Field(0.4, gt=0, le=1)
    """Share of tokens of min-k and min-k++."""

    def not_applicable(self, target: Target, scene: Scene) -> str | None:
        return "needs facts that the model never saw; give them with --control" if len(scene.others) < 2 else None

    def gold_only(self, scene: Scene) -> bool:
        """Returns whether there are few never-known subjects, which differ from the others by more than their membership."""
        return len(set(scene.others.clusters().tolist())) < LEAST

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        metrics: tuple[Metric, ...] = (MiaLoss(), MiaZlib(), MiaMinK(k=self.k), MiaMinKPlusPlus(k=self.k))
        reference = reference_half(scene.others)
        mine, others = _scores(target, facts, metrics), _scores(target, scene.others.some(reference), metrics)
        ways = []
        for metric, own, rest in zip(metrics, mine, others, strict=True):
            above = _share_below(own, rest[np.isfinite(rest)])
            if facts.examples == scene.others.examples:
                above[reference] = np.nan
            name = metric.metric_name()
            ways += [Way(f"{name}, above", above), Way(f"{name}, below", 1.0 - above)]
        return Found(tuple(ways), metric="auc", before=np.full(len(facts), 0.5))


def reference_half(others: Facts) -> list[int]:
    """Returns every second subject of the never-known facts as reference; the others are the control, which then varies as
    the attacked facts do."""
    subjects = list(dict.fromkeys(others.subject(i) or str(i) for i in range(len(others))))
    first = set(subjects[::2])
    return [i for i in range(len(others)) if (others.subject(i) or str(i)) in first]


def _scores(target: Target, facts: Facts, metrics: tuple[Metric, ...]) -> list[Floats]:
    rows = target.encoded(facts.examples)
    answers = target.engine().score(rows, distribution=True)
    target.spent["queries"] += len(rows)
    found = []
    for metric in metrics:
        values = [metric.score(Row(e, answer=stats)) for e, stats in zip(facts.examples, answers, strict=True)]
        found.append(np.array([np.nan if isinstance(value, Unscored) else value for value in values]))
    return found


def _share_below(own: Floats, others: Floats) -> Floats:
    """Computes [facts], the share of the others with a lower score, ties counted half."""
    below = (others[None, :] < own[:, None]).mean(axis=1) + 0.5 * (others[None, :] == own[:, None]).mean(axis=1)
    return np.where(np.isfinite(own), below, np.nan)
