"""Derives what may be claimed of a run from its scores and attacks, each time it is shown.

    not yet shown   no scores, nothing to compare them with, or they do not reach
    L0 guarded      scores reached, but by a guard: the weights are unchanged
    L1 suppressed   scores reached
    L2              also attacked, and no applicable attack brought more back than its control allows
    L3 exact        equal to retraining by construction; nothing in a run's records shows that yet, so that no run is given it

The scores of a suite are reached if those of the forget task (by role) are
    with gold and original    at least four fifths of the way from original to gold (first metric, extraction strength)
    with a control            no higher than on facts of the same kind that no model was ever taught
    with the original alone   less than half of the original's, with intervals that do not touch
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from expunge.records import Attack, Score
from expunge.report.aims import Aim, aim, tasks_of
from expunge.report.effects import NEAR_GOLD, forget_effect, share_gone
from expunge.report.glossary import meaning, number, task_label
from expunge.report.groups import TaskMetric
from expunge.report.read import RunRecord

Level = Literal["L0", "L1", "L2", "L3"]
MOST_GAIN = 0.1
"""Largest upper end of the interval of an attack's gain over its control that still counts as no gain."""
NOT_SHOWN = "not yet shown"
LEVELS: dict[str, tuple[str, str, str]] = {
    NOT_SHOWN: (
        NOT_SHOWN,
        "Nothing yet: the records beside the artifact do not show that anything was forgotten.",
        "That the run failed: it may only not have been measured.",
    ),
    "L0": (
        "guarded",
        "Answers pass a guard that keeps back what was to be forgotten, as far as the scores in this report show.",
        "The weights are unchanged: the model behind the guard still knows everything.",
    ),
    "L1": (
        "suppressed",
        "The model reaches the scores in this report.",
        "Not that the knowledge has left the weights, nor that it stays away when somebody tries to bring it back.",
    ),
    "L2": (
        "attack-tested",
        "The listed attacks, with their budgets, did not bring the knowledge back.",
        "Nothing about other attacks or larger budgets.",
    ),
    "L3": (
        "exact",
        "Equal to retraining without the forget set, by construction.",
        "Nothing about what the remaining data lets a model infer.",
    ),
}
"""Level -> name, what it means, what it does not mean."""


class Claim(NamedTuple):
    level: Level | None
    why: str
    """The evidence for the level, or what is missing."""

    @property
    def shown(self) -> str:
        return self.level or NOT_SHOWN


def claim(run: RunRecord, original: RunRecord | None, gold: RunRecord | None) -> Claim:
    """Returns the highest level that the records of a run support."""
    missing = _unreached(run, original, gold)
    if missing:
        return Claim(None, missing)
    if run.artifact is not None and run.artifact.kind == "guard":
        return Claim("L0", "scores reached behind a guard")
    tried = [attack for attack in run.attacks if attack.applicable]
    brought_back = [attack.attack for attack in tried if not _held(attack)]
    if not tried:
        return Claim("L1", "scores reached; nobody has tried to bring it back")
    if brought_back:
        return Claim("L1", f"scores reached, but not shown to hold against {', '.join(brought_back)}")
    return Claim("L2", f"scores reached, held against {', '.join(attack.attack for attack in tried)}")


def _held(attack: Attack) -> bool:
    return attack.gain is not None and attack.gain.high is not None and attack.gain.high <= MOST_GAIN


def _unreached(run: RunRecord, original: RunRecord | None, gold: RunRecord | None) -> str | None:
    """Returns why the scores do not show forgetting; "" if they do, in every suite with a forget task."""
    found = [(e.suite, own) for e in run.evaluations if (own := aim(e.suite, [run])) and tasks_of(run, e.suite, "forget")]
    if not found:
        return "no suite has scored what was to be forgotten"
    return next((reason for suite, own in found if (reason := _short_of(run, original, gold, own))), None)


def _short_of(run: RunRecord, original: RunRecord | None, gold: RunRecord | None, own: Aim) -> str | None:
    score = run.score(own.suite, own.gone.task, own.gone.metric)
    if score is None or score.value is None:
        return f"{task_label(own.gone.task)} has no {meaning(own.gone.metric).label}"
    same = gold is not None and own.gone.task in tasks_of(gold, own.suite, "forget")
    if original and gold and same and original.evaluation(own.suite):
        metrics = dict.fromkeys([own.gone.metric, "extraction_strength"])
        asked = [TaskMetric(own.gone.task, m) for m in metrics if run.score(own.suite, own.gone.task, m)]
        effects = [(a, forget_effect(run, original, gold, own._replace(gone=a)).value) for a in asked]
        short = [
            f"{meaning(a.metric).label} {number('forget_effect', e)}" for a, e in effects if e is not None and e < NEAR_GOLD[0]
        ]
        return f"forget effect below {NEAR_GOLD[0]}: {', '.join(short)}" if short else None
    if (control := _control(run, own)) is not None:
        most = control.high if control.high is not None else control.value
        return None if most is not None and score.value <= most else "more is known than of facts that no model was taught"
    if original is None or not original.evaluation(own.suite):
        return "there is neither an original nor a control to compare the scores with"
    before, gone = original.score(own.suite, own.gone.task, own.gone.metric), share_gone(run, original, own).value
    apart = before is not None and before.low is not None and score.high is not None and score.high < before.low
    return None if gone is not None and gone > 0.5 and apart else "less than half of what was to go is gone"


def _control(run: RunRecord, own: Aim) -> Score | None:
    scores = (run.score(own.suite, task, own.gone.metric) for task in tasks_of(run, own.suite, "control"))
    return next((score for score in scores if score and score.value is not None), None)


def claim_rows(claims: dict[str, Claim]) -> list[dict[str, str]]:
    """Returns, for each level that occurs: its runs, what it means and does not mean, and the evidence."""
    levels: dict[str, list[str]] = {}
    for name, found in claims.items():
        levels.setdefault(found.shown, []).append(name)
    order = list(LEVELS)
    rows = []
    for level in sorted(levels, key=order.index):
        name, says, says_not = LEVELS[level]
        shown = name if level == NOT_SHOWN else f"{level} {name}"
        rests = "; ".join(f"{why}: {', '.join(runs)}" for why, runs in _by_reason(claims, levels[level]).items())
        rows.append({"level": shown, "runs": ", ".join(levels[level]), "says": says, "not": says_not, "why": rests})
    return rows


def _by_reason(claims: dict[str, Claim], names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(claims[name].why, []).append(name)
    return found
