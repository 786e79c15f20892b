"""Turns membership attacks into scores: AUC of forget against holdout texts, and its difference from a retain model's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from expunge.evaluation.metrics.base import Unscored
from expunge.evaluation.metrics.membership import Attacked, Estimate, membership_auc, privleak, relative_difference
from expunge.evaluation.suites.base import reference_values
from expunge.evaluation.task import SUITE, Results
from expunge.records import Score

Scores = Mapping[tuple[str, str], Mapping[str, float]]
"""(task, attack) -> example id -> score of another model."""


class TaskPair(NamedTuple):
    """The names of the two tasks."""

    forget: str
    holdout: str


def reference_scores(folder: Path | None, suite: str, sets: TaskPair, attacks: Sequence[str]) -> Scores | None:
    """Reads the attack scores of another model's evaluation with the same suite; None without a folder."""
    if folder is None:
        return None
    return {(task, name): reference_values(folder, suite, task, name) for task in sets for name in attacks}


def attack_scores(
    results: Results, sets: TaskPair, attacks: Sequence[str], *, retain: Scores | None, reference: Scores | None, advice: str
) -> list[Score]:
    """Computes the AUC of each attack, that of mia_reference if there is mia_loss, and each AUC's relative difference from the
    retain model's.

    retain      a model that never saw the forget set, for the relative differences
    reference   any model of the same language, for mia_reference: log-probability under this model minus that under it
    advice      how to make the retain model's scores
    """
    scores = [score(results, sets, name, membership_auc(_mine(results, sets, name))) for name in attacks]
    if "mia_loss" in attacks:
        scores.append(score(results, sets, "mia_reference", _against(results, sets, reference)))
    for name in attacks:
        scores.append(score(results, sets, f"{name}_relative_difference", _relative(results, sets, name, retain, advice)))
    return scores


def privleak_score(
    results: Results,
    sets: TaskPair,
    retain: Scores | None,
    *,
    attack: str = "mia_min_k",
    retain_auc: float | None = None,
    advice: str,
) -> Score:
    """Computes MUSE's privleak of an attack.

    retain_auc   AUC' of the retain model in MUSE's convention, if no retain model is available
    """
    value: Estimate | Unscored
    if retain is not None:
        pair = _paired(results, sets, attack, retain)
        value = pair if isinstance(pair, Unscored) else privleak(*pair)
    elif retain_auc is not None:
        value = privleak(_mine(results, sets, attack), retain_auc)
    else:
        value = Unscored(f"needs the scores of a model that never saw the forget set: {advice}")
    return score(results, sets, "privleak", value)


def score(results: Results, sets: TaskPair, metric: str, value: Estimate | Unscored) -> Score:
    """Makes the record. It has no direction: the goal is the retain model's value, from either side."""
    attacked = _mine(results, sets, "mia_min_k" if metric == "privleak" else _attack(metric))
    n = len(attacked.forget) + len(attacked.holdout)
    if isinstance(value, Unscored):
        return Score(task=SUITE, metric=metric, value=None, n=n, unscored=value.reason)
    low, high = value.interval or (None, None)
    return Score(task=SUITE, metric=metric, value=value.value, low=low, high=high, n=n)


def _attack(metric: str) -> str:
    return "mia_loss" if metric == "mia_reference" else metric.removesuffix("_relative_difference")


def _mine(results: Results, sets: TaskPair, attack: str) -> Attacked:
    return Attacked(results.values(sets.forget, attack), results.values(sets.holdout, attack))


def _paired(results: Results, sets: TaskPair, attack: str, other: Scores) -> tuple[Attacked, Attacked] | Unscored:
    """Returns this model's scores and another's, of the same examples in the same order."""
    mine, theirs = [], []
    for task in sets:
        values, known = results.by_id(task, attack), other[task, attack]
        if missing := sum(id not in known for id in values):
            return Unscored(
                f"the other model's scores lack {missing} of {len(values)} examples of {task}; evaluate it on the same"
            )
        mine.append(np.array(list(values.values()), dtype=np.float64))
        theirs.append(np.array([known[id] for id in values], dtype=np.float64))
    return Attacked(*mine), Attacked(*theirs)


def _against(results: Results, sets: TaskPair, reference: Scores | None) -> Estimate | Unscored:
    if reference is None:
        return Unscored(
            "needs the scores of a reference model of the same language: evaluate it with this suite and --out DIR, then give "
            "--options reference_scores=DIR"
        )
    pair = _paired(results, sets, "mia_loss", reference)
    if isinstance(pair, Unscored):
        return pair
    mine, theirs = pair
    return membership_auc(Attacked(mine.forget - theirs.forget, mine.holdout - theirs.holdout))


def _relative(results: Results, sets: TaskPair, attack: str, retain: Scores | None, advice: str) -> Estimate | Unscored:
    if retain is None:
        return Unscored(f"needs the scores of a model that never saw the forget set: {advice}")
    pair = _paired(results, sets, attack, retain)
    return pair if isinstance(pair, Unscored) else relative_difference(*pair)
