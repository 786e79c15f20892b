"""Runs attacks on an artifact and its controls with the same budget, and saves and resumes them one by one."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from expunge.artifact import artifact_folder, read_manifest
from expunge.attacks import ATTACKS
from expunge.attacks.base import AttackSpec, Scene
from expunge.attacks.gain import Compared, Side, over_control
from expunge.attacks.knowledge import Facts, Floats, form_words
from expunge.attacks.sources import Sources
from expunge.attacks.target import Kind, Target
from expunge.data.example import Example, fingerprint
from expunge.errors import ExpungeError
from expunge.evaluation.resume import code_version
from expunge.evaluation.statistics import bootstrap_interval
from expunge.folders import locked
from expunge.loading import open_model
from expunge.models.load import DType
from expunge.progress import Progress
from expunge.records import Attack, LadderRow, Role, Sample, Score, write_json, write_samples
from expunge.start import find_start

LADDER = "ladder.json"
Who = Literal["forget", "gold", "control"]
"""The artifact on the forgotten facts, the gold model on the same, the artifact on facts that it never saw."""


def attack(
    artifact: str | Path,
    attacks: Mapping[str, AttackSpec],
    sources: Sources,
    *,
    out: str | Path,
    seed: int = 0,
    dtype: DType = "auto",
    max_new_tokens: int = 24,
    overwrite: bool = False,
    quiet: bool = False,
) -> tuple[Attack, ...]:
    """Tries to bring the forgotten facts back and writes ATTACK.json, ATTACK.samples.jsonl and ladder.json into `out`.

    artifact        a run, an artifact, a model folder or a hub id
    attacks         label -> attack (`expunge.attacks.named`)
    max_new_tokens  longest answer that is read

    What is there already, of the same code, models, facts and budget, is kept; of others it is an error unless `overwrite`.
    """
    folder = Path(out)
    field = _Field(str(artifact), sources, seed, dtype, max_new_tokens)
    field.open()
    done: list[Attack] = []
    for label, spec in attacks.items():
        _check(folder / f"{_stem(label)}.json", field.key(label, spec), overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), Progress("attack", len(attacks), quiet=quiet) as progress:
        for label, spec in attacks.items():
            file = folder / f"{_stem(label)}.json"
            key = field.key(label, spec)
            record = _kept(file, key)
            if record is None:
                record, samples = field.attacked(label, spec)
                record = record.model_copy(update={"key": key})
                write_samples(file.with_suffix(".samples.jsonl"), samples)
                write_json(file, record)
                _write_ladder(folder)
            done.append(record)
            progress.advance(1, f"{label} {_said(record)}")
        _write_ladder(folder)
    return tuple(done)


class _Field:
    """The artifact, its controls, and what was measured of them before any attack, each found out once."""

    def __init__(self, artifact: str, sources: Sources, seed: int, dtype: DType, max_new_tokens: int) -> None:
        self.artifact, self.sources, self.seed, self.dtype, self.max_new_tokens = artifact, sources, seed, dtype, max_new_tokens
        everything = (*sources.forget, *sources.control)
        form = form_words(everything)
        count = len(sources.forget)
        self.facts: dict[Who, Facts] = {
            "forget": Facts(sources.forget, form),
            "gold": Facts(sources.forget, form),
            "control": Facts(sources.control[:count], form),
        }
        self.retain = Facts(sources.retain, form)
        self._before: dict[Who, Floats] = {}

    def open(self) -> None:
        """Loads the artifact, and the gold model where there is one that is not the artifact itself."""
        self.mine = opened(self.artifact, self.dtype, self.max_new_tokens)
        gold = opened(self.sources.gold, self.dtype, self.max_new_tokens) if self.sources.gold is not None else None
        self.gold = gold if gold is not None and gold.fingerprint != self.mine.fingerprint else None
        place = self.sources.original
        self.original = cache(lambda: opened(place, self.dtype, self.max_new_tokens)) if place is not None else None

    def key(self, label: str, spec: AttackSpec) -> str:
        """sha256 over everything that a result depends on."""
        settings: list[Any] = [code_version(), label, spec.model_dump(mode="json"), self.seed, self.max_new_tokens]
        settings += [self.mine.fingerprint, self.gold.fingerprint if self.gold else None, self.sources.original]
        settings += [fingerprint(rows) for rows in (*(f.examples for f in self.facts.values()), self.retain.examples)]
        settings += [fingerprint(self.sources.neutral), self.mine.encoder.format.model_dump_json()]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def target(self, who: Who) -> Target:
        found = self.gold if who == "gold" else self.mine
        assert found is not None
        return found

    def scene(self, who: Who) -> Scene:
        others = self.facts["control"]
        return Scene(self.retain, others, self.sources.neutral, self.original, self.seed)

    def before(self, who: Who) -> Floats:
        """[facts], recall of the plain questions."""
        if who not in self._before:
            self._before[who] = self.target(who).recall(self.facts[who])
        return self._before[who]

    def attacked(self, label: str, spec: AttackSpec) -> tuple[Attack, list[Sample]]:
        """The attack on the artifact and on its controls, compared."""
        began, cpu = time.perf_counter(), time.process_time()
        spent = dict(self.mine.spent)
        reason = spec.not_applicable(self.mine, self.scene("forget"))
        record = Attack(attack=label, artifact=self.artifact, budget=spec.budget)
        if reason is not None:
            return record.model_copy(update={"applicable": False, "reason": reason}), []
        sides: dict[Who, Side] = {}
        whom: list[Who] = ["forget", *(["gold"] if self.gold else []), *(["control"] if self._has_control(spec) else [])]  # type: ignore[list-item]
        for who in whom:
            found = spec.run(self.target(who), self.facts[who], self.scene(who))
            if not found.ways:
                return record.model_copy(update={"reason": "nothing to try it with: the data lacks what it needs"}), []
            before = self.before(who) if found.before is None else found.before
            sides[who] = Side(before, found, self.facts[who].clusters())
        compared = {who: over_control(sides["forget"], sides[who], paired=who == "gold") for who in whom[1:]}
        cost = {name: float(count - spent[name]) for name, count in self.mine.spent.items()}
        record = record.model_copy(
            update={
                **_results(sides, compared),
                "seconds": round(time.perf_counter() - began, 3),
                "cost": cost | {"cpu_seconds": round(time.process_time() - cpu, 3)},
            }
        )
        return record, self._samples(sides, compared)

    def _has_control(self, spec: AttackSpec) -> bool:
        return len(self.facts["control"]) > 1 and not spec.gold_only(self.scene("control"))

    def _samples(self, sides: Mapping[Who, Side], compared: Mapping[Who, Compared]) -> list[Sample]:
        """One row per fact and side, after the attack; no texts."""
        rows = []
        for who, values in _after(sides, compared).items():
            role: Role = "forget" if who == "forget" else "control"
            for example, value in zip(self.facts[who].examples, values, strict=True):
                rows.append(_sample(who, sides[who].found.metric, example, role, float(value)))
        return rows


def opened(place: str, dtype: DType = "auto", max_new_tokens: int = 24) -> Target:
    """A model to be attacked; an adapter is added into the weights, a guard stays attached."""
    folder = artifact_folder(place)
    kind: Kind = read_manifest(folder).kind if folder is not None else "weights"
    if kind == "adapter":
        start = find_start(place)
        model, tokenizer = start.load(dtype), start.tokenizer(trust_remote_code=False)
        return Target(model, tokenizer, kind=kind, fingerprint=start.fingerprint(), max_new_tokens=max_new_tokens)
    found = open_model(place, dtype=dtype)
    return Target(found.model, found.tokenizer, kind=kind, fingerprint=found.fingerprint(), max_new_tokens=max_new_tokens)


def _results(sides: Mapping[Who, Side], compared: Mapping[Who, Compared]) -> dict[str, Any]:
    """Gain, control, scores and trials of a record. Where there is a gold model, the gain is over gold."""
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


def _after(sides: Mapping[Who, Side], compared: Mapping[Who, Compared]) -> dict[Who, Floats]:
    """Side -> values after the attack, by the ways that were chosen; without a control by the way with the highest mean."""
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
    )


def _sample(task: str, metric: str, example: Example, role: Role, value: float) -> Sample:
    if np.isfinite(value):
        return Sample(task=task, metric=metric, id=example.id, role=role, value=value)
    return Sample(task=task, metric=metric, id=example.id, role=role, value=None, unscored="no word of it counts, or no answer")


def _stem(label: str) -> str:
    """`relearn:lucki` -> `relearn_lucki`, a file name everywhere."""
    return label.replace(":", "_")


def _kept(file: Path, key: str) -> Attack | None:
    """The record that is there, if it is of the same code, models, facts and budget."""
    if not file.is_file():
        return None
    record = read_attack(file)
    return record if record.key == key else None


def _check(file: Path, key: str, overwrite: bool) -> None:
    if file.is_file() and not overwrite and _kept(file, key) is None:
        raise ExpungeError(f"{file} exists, of another model, other facts or another budget; give another --out, or --overwrite")


def read_attack(file: Path) -> Attack:
    """One ATTACK.json."""
    try:
        return Attack.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExpungeError(f"{file} is not an attack of expunge ({str(error).splitlines()[0]})") from error


def _write_ladder(folder: Path) -> None:
    """ladder.json: a row for every attack in the folder, in the order of the list."""
    order = [attack.attack_name() for attack in ATTACKS]
    found = [read_attack(file) for file in sorted(folder.glob("*.json")) if file.name != LADDER]
    found.sort(key=lambda record: (order.index(record.attack.partition(":")[0]), record.attack))
    write_json(folder / LADDER, [_row(record).model_dump(mode="json") for record in found])


def _row(record: Attack) -> LadderRow:
    return LadderRow(**{name: getattr(record, name) for name in LadderRow.model_fields})


def _said(record: Attack) -> str:
    if not record.applicable:
        return "not applicable"
    gain = record.gain
    return "no gain" if gain is None or gain.value is None else f"{gain.value:+.3f}"


def table(records: Sequence[Attack]) -> str:
    """The ladder as aligned text: gain over the control with its interval, the level after the attack, processor seconds."""
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
