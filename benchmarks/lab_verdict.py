"""Can a run in the lab be told from gold? The recipe of each training method, judged as a report judges it.

    python benchmarks/lab_verdict.py --out DIR [--seeds 0 1] [--labs DIR ...] [--methods npo simnpo ...] [--settings FILE.yaml]

For each lab and each method the lab's people are forgotten by recipes/lab/METHOD.yaml, and the run and the lab's gold model are
compared by `expunge.evaluation.verdict` on the suite `lab`. Printed, one line per run: the verdict, what tells the two apart (the
statistic, its direction, its corrected p-value), the same for the other question of each fact, which no run is trained on, the
forget effect (0 original, 1 gold), what is kept of the retain answers' probability, and the steps and seconds of the training.

--seeds                 labs of these seeds, from the cache or made (some minutes each)
--labs DIR ...          labs made before, as `expunge lab` writes them, instead of --seeds
--settings FILE.yaml    other settings to try beside the recipes, such as
                        npo-b2: {of: npo, method: {beta: 2.0}, training: {steps: 200}}
--methods               recipes, or names of the settings file; left out: all

Every line is also appended to DIR/rows.jsonl, and what stands there is not measured again.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml

from expunge.evaluation.metrics import Probability
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites.lab import Lab
from expunge.evaluation.task import Suite
from expunge.evaluation.verdict import Verdict, verdict
from expunge.lab import build
from expunge.loading import load
from expunge.quickstart import lab_run
from expunge.records import Sample, read_samples
from expunge.run import execute
from expunge.spec import Run
from expunge.spec import build as build_spec

METHODS = (
    "gradient_difference", "npo", "simnpo", "kl_minimization", "wga", "satimp", "ce_u", "undial", "dpo", "idk", "gradient_ascent",
    "whp",
)  # fmt: skip
OTHER = "other_question"
Settings = Mapping[str, Any]


def run_of(name: str, chosen: Settings, lab: Path, seed: int) -> Run:
    """The recipe of the method with other settings on top."""
    words = lab_run(str(chosen.get("of", name)), lab, seed).model_dump(mode="json", exclude_none=True)
    for part in ("method", "training"):
        words[part] = {**words[part], **chosen.get(part, {})}
    return build_spec(Run, {**words, **chosen.get("run", {})}, name)


def samples_of(source: Path, lab: Path, out: Path) -> list[Sample]:
    """What the suite `lab` finds of the forget people by either question, and of the retain answers; kept in `out`."""
    if not (out / "lab.samples.jsonl").is_file():
        model, tokenizer = load(source)
        tasks = {task.name: task for task in Lab().build(lab).tasks}
        forget = tasks["facts_forget"]
        other = tuple(replace(row, prompt=str(row.attributes["rephrased"])) for row in forget.examples)
        asked = (forget, replace(forget, name=OTHER, examples=other), replace(tasks["facts_retain"], metrics=(Probability(),)))
        evaluate(model, tokenizer, suite=Suite("lab", asked, lambda _: []), out=out, overwrite=True, quiet=True)
    return list(read_samples(out / "lab.samples.jsonl"))


def of_task(samples: Sequence[Sample], task: str) -> list[Sample]:
    return [sample for sample in samples if sample.task == task]


def mean(samples: Sequence[Sample], task: str, metric: str = "probability") -> float:
    values = [s.value for s in samples if s.task == task and s.metric == metric and s.value is not None]
    return sum(values) / len(values)


def measure(name: str, chosen: Settings, lab: Path, seed: int, out: Path) -> dict[str, Any]:
    """Trains, scores and judges one run; its weights are removed afterwards."""
    place, known = out / str(seed) / name, {}
    for model in ("original", "gold"):
        known[model] = samples_of(lab / "models" / model, lab, out / str(seed) / model)
    began = time.perf_counter()
    execute(run_of(name, chosen, lab, seed), place, overwrite=place.exists(), quiet=True)
    seconds = time.perf_counter() - began
    found = samples_of(place, lab, place / "scores")
    forget, original, gold = (mean(side, "facts_forget") for side in (found, known["original"], known["gold"]))
    told, other = (verdict(of_task(found, task), of_task(known["gold"], task)) for task in ("facts_forget", OTHER))
    steps = sum(1 for _ in (place / "metrics.jsonl").open(encoding="utf-8"))
    shutil.rmtree(place)
    return {
        "seed": seed,
        "run": name,
        "verdict": told.words,
        "told by": told_by(told),
        "other question": f"{other.words}: {told_by(other)}".removesuffix(": "),
        "forget effect": round((original - forget) / (original - gold), 3),
        "retain kept": round(mean(found, "facts_retain") / mean(known["original"], "facts_retain"), 3),
        "steps": steps,
        "seconds": round(seconds, 1),
        "statistics": {f.metric: [round(f.difference, 4), f.p, f.test, f.found] for f in told.findings},
    }


def told_by(found: Verdict) -> str:
    """`truth_ratio 1e-07 still known`, the clearest first; else what is undecided."""
    apart = ", ".join(f"{f.metric} {f.p:.0e} {f.direction}" for f in found.apart)
    return apart or ", ".join(f"{f.metric} undecided" for f in found.undecided)


def table(rows: Sequence[Settings]) -> str:
    names = [name for name in rows[0] if name != "statistics"]
    lines = [names, ["---"] * len(names), *([str(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--labs", type=Path, nargs="+", default=[])
    parser.add_argument("--methods", nargs="+", default=[])
    parser.add_argument("--settings", type=Path)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    others: dict[str, Settings] = yaml.safe_load(flags.settings.read_text(encoding="utf-8")) if flags.settings else {}
    flags.out.mkdir(parents=True, exist_ok=True)
    log = flags.out / "rows.jsonl"
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    labs = flags.labs or [build(flags.out / "labs" / str(seed), seed=seed) for seed in flags.seeds]
    for lab in labs:
        seed = json.loads((lab / "world.json").read_text(encoding="utf-8"))["seed"]
        for name in flags.methods or [*METHODS, *others]:
            if any(row["run"] == name and row["seed"] == seed for row in rows):
                continue
            row = measure(name, others.get(name, {}), lab, seed, flags.out)
            rows.append(row)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
