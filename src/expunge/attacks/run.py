"""Runs attacks on an artifact and its controls with the same budget, and saves and resumes them one by one."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from expunge.artifact import artifact_folder, base_fingerprint, read_manifest
from expunge.attacks import ATTACKS
from expunge.attacks.base import AttackSpec, Found, Scene
from expunge.attacks.gain import Side, over_control
from expunge.attacks.knowledge import Facts, Floats, form_words
from expunge.attacks.results import Who, results, said, samples
from expunge.attacks.sources import Sources
from expunge.attacks.sweep import RANGES, Sweep, check_sweep, joined, searched
from expunge.attacks.target import Kind, Target
from expunge.data.control import warn_of_control
from expunge.data.example import fingerprint
from expunge.errors import ExpungeError
from expunge.evaluation.resume import code_version
from expunge.folders import locked
from expunge.loading import Loading, open_model
from expunge.models.load import DType
from expunge.progress import Progress
from expunge.records import Attack, LadderRow, Sample, write_json, write_scores
from expunge.start import find_start

LADDER = "ladder.json"


def attack(
    artifact: str | Path,
    attacks: Mapping[str, AttackSpec],
    sources: Sources,
    *,
    out: str | Path,
    seed: int = 0,
    sweep: Sweep | None = None,
    dtype: DType = "auto",
    max_new_tokens: int = 24,
    overwrite: bool = False,
    quiet: bool = False,
) -> tuple[Attack, ...]:
    """Tries to recover the forgotten facts and writes ATTACK.json, ATTACK.samples.jsonl and ladder.json into `out`.

    artifact        a run, an artifact, a model folder or a hub id
    attacks         label -> attack (`expunge.attacks.named`)
    sweep           searches the settings of attacks that have ranges
    max_new_tokens  longest answer that is read

    Existing results of the same code, models, facts and budget are kept. Raises ExpungeError for others, unless `overwrite` is
    set.
    """
    folder = Path(out)
    if sweep is not None:
        check_sweep(attacks, sweep)
        if sweep.disruption_budget is not None and not sources.neutral:
            raise ExpungeError("--disruption-budget is measured on neutral text, and there is none; give it with --neutral FILE")
    field = _Field(str(artifact), sources, seed, dtype, max_new_tokens, sweep)
    field.open()
    done: list[Attack] = []
    for label, spec in attacks.items():
        _check(folder / f"{_stem(label)}.json", field.key(label, spec), overwrite)
    with locked(folder), Progress("attack", len(attacks), quiet=quiet) as progress:
        for label, spec in attacks.items():
            file = folder / f"{_stem(label)}.json"
            key = field.key(label, spec)
            record = _kept(file, key)
            if record is None:
                record, rows = field.attacked(label, spec)
                record = record.model_copy(update={"key": key})
                write_scores(file, record, rows)
                _write_ladder(folder)
            done.append(record)
            progress.advance(1, f"{label} {said(record)}")
        _write_ladder(folder)
    return tuple(done)


class _Field:
    """The artifact, its controls, and their measurements before any attack, each computed once."""

    def __init__(
        self, artifact: str, sources: Sources, seed: int, dtype: DType, max_new_tokens: int, sweep: Sweep | None
    ) -> None:
        self.sweep = sweep
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
        warn_of_control(self.mine.tokenizer, (*self.sources.forget, *self.sources.control, *self.sources.retain), "facts")
        place = self.sources.original
        self.before_sha256 = base_fingerprint(place) if place is not None and Path(place).is_dir() else place
        self.original = cache(lambda: opened(place, self.dtype, self.max_new_tokens)) if place is not None else None

    def key(self, label: str, spec: AttackSpec) -> str:
        """Computes a sha256 over everything that a result depends on."""
        settings: list[Any] = [code_version(), label, spec.model_dump(mode="json"), self.seed, self.max_new_tokens]
        swept = self._swept(spec)
        settings += [None if swept is None else asdict(swept)]
        settings += [self.mine.fingerprint, self.gold.fingerprint if self.gold else None, self.before_sha256]
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
        """Computes [facts], the recall of the plain questions."""
        if who not in self._before:
            self._before[who] = self.target(who).recall(self.facts[who])
        return self._before[who]

    def attacked(self, label: str, spec: AttackSpec) -> tuple[Attack, list[Sample]]:
        """Runs the attack on the artifact and on its controls, and compares them."""
        began, cpu = time.perf_counter(), time.process_time()
        spent = dict(self.mine.spent)
        reason = spec.not_applicable(self.mine, self.scene("forget"))
        budget = spec.budget
        if (sweep := self._swept(spec)) is not None:
            budget |= {"sweep": sweep.trials, "utility_loss": sweep.utility_loss}
            if sweep.disruption_budget is not None:
                budget |= {"disruption_budget": sweep.disruption_budget}
        record = Attack(attack=label, artifact=self.artifact, budget=budget)
        if reason is not None:
            return record.model_copy(update={"applicable": False, "reason": reason}), []
        if spec.gold_only(self.scene("forget")) and self.gold is None:
            reason = "needs a gold model that is not the artifact itself (--gold): facts never seen are no control for it"
            return record.model_copy(update={"applicable": False, "reason": reason}), []
        sides: dict[Who, Side] = {}
        specs: list[AttackSpec] = [spec]
        whom: list[Who] = ["forget", *(["gold"] if self.gold else []), *(["control"] if self._has_control(spec) else [])]  # type: ignore[list-item]
        for who in whom:
            run = partial(_run, self.target(who), self.facts[who], self.scene(who))
            if (sweep := self._swept(spec)) is None:
                found = run(spec)
            elif who == "forget":
                found, specs = searched(spec, run, sweep, self.seed)
            else:
                found = joined([run(one) for one in specs], specs)
            if not found.ways:
                return record.model_copy(update={"reason": "nothing to try it with: the data lacks what it needs"}), []
            before = self.before(who) if found.before is None else found.before
            sides[who] = Side(before, found, self.facts[who].clusters())
        compared = {who: over_control(sides["forget"], sides[who], paired=who == "gold") for who in whom[1:]}
        cost = {name: float(count - spent[name]) for name, count in self.mine.spent.items()}
        record = record.model_copy(
            update={
                **results(sides, compared),
                "seconds": round(time.perf_counter() - began, 3),
                "cost": cost | {"cpu_seconds": round(time.process_time() - cpu, 3)},
            }
        )
        return record, samples(self.facts, sides, compared)

    def _swept(self, spec: AttackSpec) -> Sweep | None:
        return self.sweep if type(spec) in RANGES else None

    def _has_control(self, spec: AttackSpec) -> bool:
        return len(self.facts["control"]) > 1 and not spec.gold_only(self.scene("control"))


def _run(target: Target, facts: Facts, scene: Scene, spec: AttackSpec) -> Found:
    return spec.run(target, facts, scene)


def opened(place: str, dtype: DType = "auto", max_new_tokens: int = 24) -> Target:
    """Opens a model to be attacked; an adapter is merged into the weights, a guard remains attached."""
    folder = artifact_folder(place)
    kind: Kind = read_manifest(folder).kind if folder is not None else "weights"
    if kind == "adapter":
        start = find_start(place)
        model, tokenizer = start.load(dtype), start.tokenizer(trust_remote_code=False)
        return Target(model, tokenizer, kind=kind, fingerprint=start.fingerprint(), max_new_tokens=max_new_tokens)
    found = open_model(place, Loading(dtype))
    return Target(found.model, found.tokenizer, kind=kind, fingerprint=found.fingerprint(), max_new_tokens=max_new_tokens)


def _stem(label: str) -> str:
    """Converts `relearn:lucki` to `relearn_lucki`, a valid file name."""
    return label.replace(":", "_")


def _kept(file: Path, key: str) -> Attack | None:
    """Returns the existing record, if it is of the same code, models, facts and budget."""
    if not file.is_file():
        return None
    record = read_attack(file)
    return record if record.key == key else None


def _check(file: Path, key: str, overwrite: bool) -> None:
    if file.is_file() and not overwrite and _kept(file, key) is None:
        raise ExpungeError(f"{file} exists, of another model, other facts or another budget; give another --out, or --overwrite")


def read_attack(file: Path) -> Attack:
    """Reads one ATTACK.json."""
    try:
        return Attack.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExpungeError(f"{file} is not an attack of expunge ({str(error).splitlines()[0]})") from error


def _write_ladder(folder: Path) -> None:
    """Writes ladder.json: a row for every attack in the folder, in the order of the list."""
    order = [attack.attack_name() for attack in ATTACKS]
    found = [read_attack(file) for file in sorted(folder.glob("*.json")) if file.name != LADDER]
    found.sort(key=lambda record: (order.index(record.attack.partition(":")[0]), record.attack))
    write_json(folder / LADDER, [_row(record).model_dump(mode="json") for record in found])


def _row(record: Attack) -> LadderRow:
    return LadderRow(**{name: getattr(record, name) for name in LadderRow.model_fields})
