"""Makes the record of an attack: gain, control, scores, every way that was tried, one sample for each fact."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from expunge.attacks.gain import Compared, Side
from expunge.attacks.knowledge import Facts, Floats
from expunge.data.example import Example
from expunge.evaluation.statistics import bootstrap_interval
from expunge.records import Attack, Role, Sample, Score

NO_VALUE = "no word of it counts, or no answer"
"""Why a fact has no value."""
Who = Literal["forget", "gold", "control"]
"""The artifact on the forgotten facts, the gold model on the same, the artifact on facts that it never saw."""


def results(sides: Mapping[Who, Side], compared: Mapping[Who, Compared]) -> dict[str, Any]:
    """Returns gain, control, scores and trials of a record. Where there is a gold model, the gain is over gold."""
    after = _after(sides, compared)
    scores = [_score(who, sides[who].found.metric, values) for who, values in after.items()]
    scores.insert(1, _score("before", sides["forget"].found.metric, sides["forget"].before))
    control: dict[str, Any] = {}
    for who, found in compared.items():
        name = "never_known" if who == "control" else who
        control |= {f"{name}_before": _mean(sides[who].before), f"{name}_after": _mean(found.control_after)}
        control |= {f"{name}_gain": found.gain.value, f"{name}_low": found.gain.low, f"{name}_high": found.gain.high}
        control |= {f"{name}_p": found.p}
    trials = [
        {"way": way.label, **way.note, "value": _mean(way.values)}
        | {("never_known" if who == "control" else who): _mean(sides[who].found.ways[i].values) for who in compared}
        for i, way in enumerate(sides["forget"].found.ways)
    ]
    first = compared.get("gold") or compared.get("control")
    if first is None:
        reason = "no control: neither a gold model (--gold) nor facts that the model never saw (--control FILE), so that nobody "
        reason += "can tell what came back from what a model that never knew would say"
        return {"reason": reason, "scores": tuple(scores), "trials": tuple(trials)}
    control = {"of": "gold" if "gold" in compared else "never_known", "ways": list(first.ways), **control}
    control |= dict(sides["forget"].found.note)
    return {
        "gain": first.gain,
        "reason": first.reason,
        "control": control,
        "scores": tuple(scores),
        "trials": tuple(trials),
    }


def samples(facts: Mapping[Who, Facts], sides: Mapping[Who, Side], compared: Mapping[Who, Compared]) -> list[Sample]:
    """Returns one row per fact and side, after the attack; no texts."""
    rows = []
    for who, values in _after(sides, compared).items():
        role: Role = "forget" if who == "forget" else "control"
        for example, value in zip(facts[who].examples, values, strict=True):
            rows.append(_sample(who, sides[who].found.metric, example, role, float(value)))
    return rows


def _after(sides: Mapping[Who, Side], compared: Mapping[Who, Compared]) -> dict[Who, Floats]:
    """Returns side -> values after the attack, by the chosen ways; without a control, by the way with the highest mean."""
    first = compared.get("gold") or compared.get("control")
    if first is None:
        means = [_mean(way.values) for way in sides["forget"].found.ways]
        best = int(np.argmax([-1.0 if value is None else value for value in means]))
        return {"forget": sides["forget"].found.ways[best].values}
    return {"forget": first.after, **{who: found.control_after for who, found in compared.items()}}


def _mean(values: Floats) -> float | None:
    scored = values[np.isfinite(values)]
    return round(float(scored.mean()), 6) if len(scored) else None


def _score(task: str, metric: str, values: Floats) -> Score:
    scored = values[np.isfinite(values)]
    role: Role = "forget" if task in ("forget", "before") else "control"
    better = False if role == "forget" else None
    if not len(scored):
        return Score(task=task, metric=metric, role=role, value=None, n=0, unscored="no fact has a word that counts")
    low, high = bootstrap_interval(scored) or (None, None)
    return Score(
        task=task,
        metric=metric,
        role=role,
        value=float(scored.mean()),
        low=low,
        high=high,
        n=len(scored),
        higher_is_better=better,
        left_out={NO_VALUE: len(values) - len(scored)} if len(scored) < len(values) else {},
    )


def _sample(task: str, metric: str, example: Example, role: Role, value: float) -> Sample:
    if np.isfinite(value):
        return Sample(task=task, metric=metric, id=example.id, role=role, value=value)
    return Sample(task=task, metric=metric, id=example.id, role=role, value=None, unscored=NO_VALUE)


def said(record: Attack) -> str:
    if not record.applicable:
        return "not applicable"
    gain = record.gain
    return "no gain" if gain is None or gain.value is None else f"{gain.value:+.3f}"


def table(records: Sequence[Attack]) -> str:
    """Formats the ladder as aligned text: gain over the control with its interval, level after the attack, processor seconds."""
    width = max(len(record.attack) for record in records)
    lines = []
    for record in records:
        if not record.applicable or record.gain is None or record.gain.value is None:
            lines.append(
                f"  {record.attack:<{width}} {'not applicable' if not record.applicable else 'no gain'}: {record.reason}"
            )
            continue
        gain = record.gain
        after = next((s.value for s in record.scores if s.task == "forget"), None)
        level = "" if after is None else f"after {after:.3f}, {record.control['of'].replace('_', '-')} "
        level += "" if after is None else f"{record.control[record.control['of'] + '_after']:.3f}"
        interval = f"[{gain.low:+.3f}, {gain.high:+.3f}]" if gain.low is not None else ""
        lines.append(
            f"  {record.attack:<{width}} gain {gain.value:+.3f} {interval:<18} {level}  {record.cost['cpu_seconds']:.1f} s of CPU"
        )
    return "\n".join(lines)
