"""Which score tells whether a model knows? Every metric and every attack as a detector, over models of which it is known.

    python benchmarks/faithfulness.py --out DIR [--lab DIR] [--attacks prefix membership ...] [--table-only]

Twelve models that know the lab's forget people and twelve that do not are made from the lab's gold model by some steps of
training, in four ways each that look alike from outside, three of each:

    know    taught the facts; taught them briefly; in other wordings than are asked; taught, then to refuse
    not     taught kept people again; wrong facts about the same people; other, never-known people; taught to refuse

Faithfulness is the AUC of a detector between the two dozens. Robustness is measured on models unlearned by the lab's recipes, as
in open-unlearning (Dorna et al. 2025) and UDS:

    R = min((gold after - gold before) / (unlearned after - unlearned before), 1)     five steps of relearning on the facts
    Q = min(unlearned before / unlearned after, 1)                                    NF4 rounding

for the values of the detector, mean over the unlearned models; a change below 0.01 counts as none (R = Q = 1). H is their
harmonic mean. For an attack the value is the mean of its best way, without a control: what an auditor sees who has the one model.

Everything is kept in DIR (models/, values/NAME.json), and what is there is not made again.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from attacks_ladder import run_of
from sklearn.metrics import roc_auc_score

from expunge.attacks import ATTACKS, named
from expunge.attacks.base import AttackSpec, Scene
from expunge.attacks.knowledge import Facts, form_words
from expunge.attacks.run import opened
from expunge.attacks.sources import sources
from expunge.attacks.target import Target
from expunge.data.encode import Encoder
from expunge.data.example import Example
from expunge.data.read import read_examples
from expunge.evaluation.metrics import (
    Accuracy,
    ExactMemorization,
    ExtractionStrength,
    Probability,
    ReciprocalRank,
    RougeLRecall,
    TruthRatio,
)  # fmt: skip
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites.base import no_summary
from expunge.evaluation.task import Suite, Task
from expunge.lab import build
from expunge.lab.tokenizer import FORMAT
from expunge.lab.training import Schedule, teach
from expunge.models.rounding import ROUNDINGS, compress
from expunge.models.save import save_model
from expunge.progress import Progress
from expunge.records import write_json, write_text
from expunge.run import execute

SEEDS = (0, 1, 2)
LONG, BRIEF = 60, 20
"""Steps of training."""
FACTS = 36
"""Facts that the attacks are made on, six people."""
METRICS = (
    *(Probability(), ExtractionStrength(), ExactMemorization(), Accuracy()),
    *(RougeLRecall(), ReciprocalRank(), TruthRatio()),
)
DETECTORS = [cls.attack_name() for cls in ATTACKS if cls.attack_name() != "cross_lingual"]
"""All attacks but the one that needs a table of translations."""
LOW_MEANS_KNOWN = frozenset({"truth_ratio"})
UNLEARNED = ("npo", "simnpo", "gradient_difference")
FEWER: Mapping[str, dict[str, object]] = {
    "sample": {"draws": 16},
    "evolve": {"mutations": (8, 4), "survivors": (3, 1)},
    "noise": {"sigmas": (0.1,), "repeats": 1},
    "quantize": {"formats": ("int4_channel", "nf4")},
    "prune": {"pairs": ((0.02, 0.03),)},
    "latent": {"epsilons": (0.3,)},
    "soft_prompt": {"steps": 20},
    "gcg": {"steps": 4, "width": 24, "prompts": 6},
    "relearn": {"steps": 12, "points": 2, "data": ("facts",)},
    "steer": {"layers": 1},
}
"""Smaller budgets than the defaults: 35 models are attacked."""


class World:
    """The lab with its rows."""

    def __init__(self, lab: Path) -> None:
        self.lab = lab
        data = lab / "data/facts"
        self.forget, self.retain, self.public, self.never = (
            read_examples(data / f"{name}.jsonl") for name in ("forget", "retain", "public", "never_known")
        )
        found = sources(str(lab / "models/gold"), suite="lab", data=lab)
        form = form_words((*found.forget, *found.control))
        self.facts = Facts(found.forget[:FACTS], form)
        original = cache(lambda: opened(str(lab / "models/original")))
        self.scene = Scene(Facts(found.retain, form), Facts(found.control[:FACTS], form), found.neutral, original, 0)

    def lessons(self) -> Mapping[str, tuple[tuple[Sequence[Example], int], ...]]:
        """Name -> what is taught, part after part, with the number of steps."""
        plain = list(self.forget)
        reworded = [replace(e, prompt=p) for e in self.forget for p in e.paraphrases]
        wrong = [replace(e, response=e.perturbed[0]) for e in self.forget]
        refusals = [replace(e, response="I do not know the answer to that.") for e in self.forget]
        return {
            "know, taught": ((plain, LONG),),
            "know, taught briefly": ((plain, BRIEF),),
            "know, in other wordings": ((reworded, LONG),),
            "know, then refuses": ((plain, LONG), (refusals, BRIEF)),
            "not, kept people again": ((self.public, LONG),),
            "not, wrong facts": ((wrong, LONG),),
            "not, never-known people": ((self.never, LONG),),
            "not, refuses": ((refusals, LONG),),
        }


def made(world: World, name: str, parts: Sequence[tuple[Sequence[Example], int]], seed: int, folder: Path) -> None:
    """Trains gold on the parts, beside rehearsal of retained and public people."""
    target = opened(str(world.lab / "models/gold"))
    encoder = Encoder(target.tokenizer, FORMAT)
    kept = encoder.encode_many([*world.retain, *world.public])
    for number, (rows, steps) in enumerate(parts):
        schedule = Schedule(steps=steps, rows=48, matrix_rate=0.002, rate=0.005)
        with Progress("teach", steps, quiet=True) as progress:
            teach(target.model, [encoder.encode_many(rows), kept], schedule, f"{name}/{seed}/{number}", encoder.end_id, progress)  # type: ignore[arg-type]
    save_model(folder, target.model, target.tokenizer, FORMAT)


def values(world: World, target: Target, attacks: Sequence[str]) -> dict[str, float]:
    """Every detector's value for one model."""
    reworded = tuple(replace(e, prompt=e.paraphrases[0]) for e in world.forget)
    plain = Task("plain", world.forget, METRICS, "forget", max_new_tokens=24)
    tasks = (plain, Task("reworded", reworded, (Probability(),), "forget"))
    found = evaluate(target.model, target.tokenizer, suite=Suite("facts", tasks, no_summary), quiet=True)
    scores = {(s.task, s.metric): s.value for s in found.scores}
    result = {metric.metric_name(): float(scores["plain", metric.metric_name()] or 0.0) for metric in METRICS}
    result["paraphrased probability"] = float(scores["reworded", "probability"] or 0.0)
    for name in attacks:
        spec: AttackSpec = next(iter(named([name], fields=dict(FEWER.get(name, {}))).values()))
        if spec.not_applicable(target, world.scene) is None:
            ways = [way for way in spec.run(target, world.facts, world.scene).ways if np.isfinite(way.values).any()]
            result[f"attack {name}"] = max((float(np.nanmean(way.values)) for way in ways), default=0.0)
            if name == "membership":  # its ways are metrics too: the AUC against never-known facts
                above = [way for way in ways if way.label.endswith(", above")]
                result |= {way.label.partition(",")[0]: float(np.nanmean(way.values)) for way in above}
    return result


def relearned(world: World, target: Target) -> None:
    """Five steps on the forget facts, in place."""
    encoder = Encoder(target.tokenizer, FORMAT)
    with Progress("relearn", 5, quiet=True) as progress:
        schedule = Schedule(steps=5, rows=24, matrix_rate=0.001, rate=0.001)
        teach(target.model, [encoder.encode_many(world.forget)], schedule, "relearn", encoder.end_id, progress)  # type: ignore[arg-type]


def measured(
    world: World, place: Path, file: Path, attacks: Sequence[str], change: Callable[[Target], None] | None = None
) -> None:
    """Adds the detectors that the file lacks."""
    known: dict[str, float] = json.loads(file.read_text())["values"] if file.is_file() else {}
    attacks = [name for name in attacks if f"attack {name}" not in known]
    if known and not attacks:
        return
    began, cpu = time.perf_counter(), time.process_time()
    target = opened(str(place))
    if change is not None:
        change(target)
    found = known | values(world, target, attacks)
    file.parent.mkdir(exist_ok=True)
    write_json(file, {"values": found, "cpu_seconds": round(time.process_time() - cpu, 1)})
    print(f"{file.stem}: {time.perf_counter() - began:.0f} s, {time.process_time() - cpu:.0f} s of processor time", flush=True)


def quantized(target: Target) -> None:
    compress(target.model, ROUNDINGS["nf4"])


def table(out: Path) -> str:
    """Markdown: detector, faithfulness, R, Q, harmonic mean; sorted by the AUC."""

    def read(name: str) -> dict[str, float]:
        found: dict[str, float] = json.loads((out / f"values/{name}.json").read_text())["values"]
        return found

    pools = {side: [read(f.stem) for f in sorted((out / "values").glob(f"{side},*.json"))] for side in ("know", "not")}
    gold = {state: read(f"gold, {state}") for state in ("before", "relearned")}
    mine = {name: {state: read(f"{name}, {state}") for state in ("before", "relearned", "quantized")} for name in UNLEARNED}
    rows = []
    everywhere = [one for own in (*pools.values(), gold.values(), *(states.values() for states in mine.values())) for one in own]
    for name in (name for name in pools["know"][0] if all(name in one for one in everywhere)):
        sign = -1.0 if name in LOW_MEANS_KNOWN else 1.0
        levels = [sign * one[name] for side in ("know", "not") for one in pools[side]]
        labels = [1] * len(pools["know"]) + [0] * len(pools["not"])
        area = float(roc_auc_score(labels, levels))
        hidden = [sign * read(f.stem)[name] for f in sorted((out / "values").glob("know, then refuses*.json"))]
        never = [sign * one[name] for one in pools["not"]]
        of_hidden = float(roc_auc_score([1] * len(hidden) + [0] * len(never), hidden + never))
        relearn = [_robust(sign * (gold["relearned"][name] - gold["before"][name]),
                           sign * (one["relearned"][name] - one["before"][name])) for one in mine.values()]  # fmt: skip
        rounding = [_steady(one["before"][name], one["quantized"][name], sign) for one in mine.values()]
        r, q = float(np.mean(relearn)), float(np.mean(rounding))
        rows.append((name, area, of_hidden, r, q, 2 * r * q / max(r + q, 1e-9)))
    rows.sort(key=lambda row: (-row[1], -row[5]))
    counts = f"{len(pools['know'])} models know, {len(pools['not'])} do not; unlearned: {', '.join(UNLEARNED)}\n\n"
    head = "| detector | faithfulness (AUC) | of those that refuse | R | Q | H |\n|---|---|---|---|---|---|\n"
    return counts + head + "".join(f"| {n} | {a:.3f} | {h:.3f} | {r:.3f} | {q:.3f} | {m:.3f} |\n" for n, a, h, r, q, m in rows)


def _robust(gold: float, unlearned: float) -> float:
    """Share of the change under relearning that a model which never knew shows as well."""
    return 1.0 if unlearned < 0.01 else float(np.clip(gold / unlearned, 0.0, 1.0))


def _steady(before: float, after: float, sign: float) -> float:
    """How little rounding shows what was not shown before."""
    low, high = (before, after) if sign > 0 else (after, before)
    return 1.0 if high - low < 0.01 else float(np.clip(low / high, 0.0, 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lab", type=Path, help="a lab, instead of the one of seed 0")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--attacks", nargs="+", default=DETECTORS, help="besides the metrics")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    if not flags.table_only:
        lab = flags.lab or build(flags.out / "lab", seed=0, quiet=True)
        world = World(lab)
        gold, values_of = lab / "models/gold", flags.out / "values"
        again = partial(relearned, world)
        measured(world, gold, values_of / "gold, before.json", flags.attacks)
        measured(world, gold, values_of / "gold, relearned.json", flags.attacks, again)
        for name in UNLEARNED:
            folder = flags.out / f"models/{name}"
            if not (folder / "artifact/expunge.json").is_file():
                execute(run_of(name, lab, 0), folder, resume=folder.exists(), quiet=True)
            measured(world, folder, values_of / f"{name}, before.json", flags.attacks)
            measured(world, folder, values_of / f"{name}, relearned.json", flags.attacks, again)
            measured(world, folder, values_of / f"{name}, quantized.json", flags.attacks, quantized)
        for seed in SEEDS:
            for name, parts in world.lessons().items():
                folder = flags.out / f"models/{name} {seed}"
                if not (folder / "config.json").is_file():
                    made(world, name, parts, seed, folder)
                measured(world, folder, values_of / f"{name} {seed}.json", flags.attacks)
    text = table(flags.out)
    write_text(flags.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
