"""What training in the lab comes to, over lab seeds and instruction sets: the figures behind every bound of an outcome test.

    python benchmarks/outcomes.py --out DIR [--jobs 14] [--seconds 420] [--seeds 0 1 2 3 4] [--only rmu idk]
                                  [--arithmetic own avx2 default own-2threads] [--settings FILE.yaml]

Training amplifies the last bit of a sum: another processor, another instruction set or another number of threads ends with other
weights. A bound on an outcome is therefore a bound on a spread, and this script measures the spread. For each arithmetic (the
processor's own, AVX2, neither; two threads) and each seed it runs each outcome of OUTCOMES in the seed's lab by its recipe and
takes the figures that tests bound. The arithmetic is chosen by ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA and
MKL_ENABLE_INSTRUCTIONS in the environment of subprocesses, because all three are read when torch is loaded.

--labs DIR             labs made before: DIR/SEED as `expunge lab` writes it; others are made (some minutes each)
--labs-each            a lab for each arithmetic, so that the labs' own figures have their spread too
--settings FILE.yaml   other settings to measure beside the recipes, such as
                       rmu-15: {outcome: rmu, method: {alpha: 15}, training: {steps: 600}}

One JSON file per cell (DIR/cells/ARITHMETIC/SEED/OUTCOME.json) is written beside and renamed; what is there is not measured
again. After --seconds no new work begins, what runs is ended, and the table is of what is there. `worst` is the worst cell.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

ARITHMETIC: dict[str, dict[str, str]] = {
    "own": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "own-2threads": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
}
"""Name -> environment. `own` is the widest instruction set that the processor has (AVX-512 where it is there)."""
FIRST = ("idk", "rmu")
"""Outcomes that are measured before all others."""
BATCH = 3
"""Outcomes that one subprocess measures, so that torch is not loaded anew for each."""
PEOPLE = (
    "gradient_ascent", "gradient_difference", "kl_minimization", "npo", "simnpo", "ce_u", "dpo", "satimp", "undial", "wga",
    "altpo", "llmu", "mismatch", "pdu", "scrub", "whp",
)  # fmt: skip
SKILLS = {
    "key_space": ("arithmetic", "strings", "orvish"),
    "neuron_adjust": ("arithmetic",),
    "selective_pruning": ("arithmetic",),
}
PATHS = {"arithmetic": "skills/arithmetic", "strings": "skills/strings"} | {
    name: f"languages/{name}" for name in ("orvish", "orvane", "tullic", "peskan")
}
REST = ("general", "facts_retain", "arithmetic", "strings", "language_orvish", "language_tullic")
HAZARDS = ("hazard_fumes", "hazard_spores")
RUDE = ("behavior_seen", "behavior_unseen", "behavior_normal")
LOW_IS_BETTER = ("rate", "loss", "drop", "harmful", "off gold", "rounds")
"""Words in the names of figures of which the highest is the worst."""

Figures = dict[str, float]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    arithmetic: str
    seed: int
    outcome: str

    def file(self, out: Path) -> Path:
        return out / "cells" / self.arithmetic / str(self.seed) / f"{self.outcome}.json"


# --- in the subprocess: one lab, some outcomes ---------------------------------------------------------------------------------


def measure(flags: argparse.Namespace, settings: Mapping[str, Settings]) -> None:
    """Measures outcomes of one lab one after the other and writes the file of each."""
    import torch

    from expunge.lab import build
    from expunge.lab.building import read_figures

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    arithmetic, seed, *outcomes = flags.cell
    out, seed = flags.out, int(seed)
    lab = flags.labs / str(seed) if flags.labs else Path()
    if not flags.labs or not (lab / "models/gold").is_dir():
        lab = build(out / "labs" / lab_cell(flags, arithmetic, seed).arithmetic / str(seed), seed=seed, quiet=True)
    known = {name: read_figures(lab / "models" / name) for name in ("original", "gold", "base")}
    for name in outcomes:
        cell, began = Cell(arithmetic, seed, name), time.perf_counter()
        chosen = settings.get(name, {})
        place = out / "runs" / arithmetic / str(seed) / name
        figures = OUTCOMES[str(chosen.get("outcome", name))](lab, seed, place, chosen, known)
        write(cell.file(out), figures | {"seconds": time.perf_counter() - began})


def write(path: Path, figures: Figures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    beside.rename(path)


def run_of(name: str, files: Mapping[str, Any], seed: int, place: Path, chosen: Settings) -> Path:
    """Carries out the recipe lab/NAME with these files and the chosen other settings; an unfinished run is made again."""
    from expunge.recipes import recipe
    from expunge.run import execute
    from expunge.spec import Run, build

    said = recipe(f"lab/{name}")
    training = {**said.get("training", {}), **chosen.get("training", {}), "seed": seed}
    method = {**said["method"], **chosen.get("method", {})}
    run = build(Run, {**said, **files, **chosen.get("run", {}), "method": method, "training": training}, name)
    execute(run, place, overwrite=place.exists(), quiet=True)
    return place


def scores(source: Path, lab: Path, tasks: Sequence[str], metrics: Sequence[str], out: Path | None = None) -> dict[str, float]:
    """`task metric` -> value of the suite `lab`; out: folder for the samples."""
    from expunge.evaluation.run import evaluate
    from expunge.evaluation.suites.lab import Lab
    from expunge.evaluation.task import Suite
    from expunge.loading import load

    model, tokenizer = load(source)
    chosen = [
        replace(task, metrics=kept, shown=0)
        for task in Lab().build(lab).tasks
        if task.name in tasks and (kept := tuple(m for m in task.metrics if m.metric_name() in metrics))
    ]
    found = evaluate(model, tokenizer, suite=Suite("lab", tuple(chosen), lambda _: []), out=out, overwrite=True, quiet=True)
    return {f"{score.task} {score.metric}": score.value for score in found.scores if score.value is not None}


def lab_itself(lab: Path, seed: int, place: Path, chosen: Settings, known: Mapping[str, Figures]) -> Figures:
    """Every figure that a lab's models are held to (lab/figures.py) and how many trainings they took."""
    figures: Figures = {}
    for model, values in known.items():
        rounds = json.loads((lab / "models" / model / "figures.json").read_text(encoding="utf-8"))["rounds"]
        figures[f"{model} rounds"] = rounds
        figures |= {f"{model} {name}": value for name, value in values.items()}
    level = known["gold"]["facts_forget probability"] - known["original"]["facts_never_known probability"]
    return figures | {"gold off never known": abs(level)}


def people(name: str) -> Callable[..., Figures]:
    """Forget the twelve people by a training method: forget_effect, retain_kept, distance to gold, whole refusals."""

    def outcome(lab: Path, seed: int, place: Path, chosen: Settings, known: Mapping[str, Figures]) -> Figures:
        import numpy as np

        from expunge.evaluation.metrics.forget_quality import forget_quality
        from expunge.methods import method_class
        from expunge.recipes import recipe
        from expunge.records import read_samples

        data = lab / "data"
        files = {"model": lab / "models/original", "forget": data / "facts/forget.jsonl"}
        files["holdout"] = data / "facts/never_known.jsonl"
        spec = method_class(name).model_validate({**recipe(f"lab/{name}")["method"], **chosen.get("method", {})})
        if getattr(spec, "uses_retain", False):
            files["retain"] = data / "keep/facts.jsonl"
        if name == "idk" or (getattr(spec, "uses_refusals", False) and "refusals" in chosen):
            files["refusals"] = refusals(place, int(chosen.get("refusals", 0)), data / "refusals.txt")
        shorter: Settings = {"training": {"steps": 250}} if name == "whp" else {}  # as the test does
        run_of(name, {key: str(path) for key, path in files.items()}, seed, place, {**shorter, **chosen})
        asked = ("probability", "truth_ratio", "extraction_strength", "accuracy")
        tasks = ("facts_forget", "facts_retain")
        found = scores(place, lab, tasks, asked, place / "scores")
        gold_folder = place.parent / "gold scores"
        if not (gold_folder / "lab.json").exists():
            scores(lab / "models/gold", lab, tasks, asked, gold_folder)
        original, gold = known["original"], known["gold"]

        def column(folder: Path, metric: str) -> dict[str, float]:
            samples = read_samples(folder / "lab.samples.jsonl")
            return {s.id: s.value for s in samples if s.task == "facts_forget" and s.metric == metric and s.value is not None}

        forget = found["facts_forget probability"]
        effect = (original["facts_forget probability"] - forget) / (
            original["facts_forget probability"] - gold["facts_forget probability"]
        )
        figures = {
            "forget_effect": effect,
            "retain_kept": found["facts_retain probability"] / original["facts_retain probability"],
            "retain accuracy": found["facts_retain accuracy"],
            "extraction_strength off gold": abs(
                found["facts_forget extraction_strength"] - gold["facts_forget extraction_strength"]
            ),
            "steps": sum(1 for _ in (place / "metrics.jsonl").open(encoding="utf-8")),
        }
        ratios = column(place / "scores", "truth_ratio"), column(gold_folder, "truth_ratio")
        shared = sorted(ratios[0].keys() & ratios[1].keys())
        quality = forget_quality(*(np.array([side[i] for i in shared]) for side in ratios))
        if isinstance(quality, float):
            figures["forget_quality p"] = quality
        if "refusals" in files:
            figures["whole refusals"] = whole_refusals(place, lab, files["refusals"])
        return figures

    return outcome


def refusals(place: Path, count: int, own: Path) -> Path:
    """The lab's file, or the first `count` built-in refusals."""
    from expunge.data.refusals import REFUSALS

    if not count:
        return own
    path = place.with_suffix(".refusals.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in REFUSALS[:count]), encoding="utf-8")
    return path


def whole_refusals(place: Path, lab: Path, file: Path) -> float:
    """Share of the forget questions that are answered with a whole refusal, word for word."""
    import re

    from expunge.data.read import read_examples
    from expunge.loading import load

    model, tokenizer = load(place)
    said = {" ".join(re.findall(r"\w+|[^\w\s]", line)) for line in file.read_text(encoding="utf-8").splitlines()}
    rows = read_examples(lab / "data/facts/forget.jsonl")
    whole = 0
    for row in rows:
        ids = tokenizer(str(row.prompt), return_tensors="pt").input_ids
        answer = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        whole += tokenizer.decode(answer, skip_special_tokens=True) in said
    return whole / len(rows)


def hazards(name: str) -> Callable[..., Figures]:
    """Forget both hazard domains: share of the way to chance of the worse one, and what the rest lost."""

    def outcome(lab: Path, seed: int, place: Path, chosen: Settings, known: Mapping[str, Figures]) -> Figures:
        data = lab / "data"
        files = {
            "model": str(lab / "models/original"),
            "forget": [str(data / f"hazard/{domain.removeprefix('hazard_')}/corpus.jsonl") for domain in HAZARDS],
            "retain": str(data / "keep/hazard.jsonl"),
        }
        steps: Settings = {"training": {"steps": 150}} if name == "spunge_rmu" else {}  # as the test does
        run_of(name, files, seed, place, {**steps, **chosen})
        after = scores(place, lab, (*HAZARDS, *REST, *RUDE), ("accuracy", "harmful_rate"))
        before = scores(lab / "models/original", lab, (*HAZARDS, *REST, *RUDE), ("accuracy", "harmful_rate"))
        way = [(before[f"{t} accuracy"] - after[f"{t} accuracy"]) / (before[f"{t} accuracy"] - 0.25) for t in HAZARDS]
        lost = {task: before[f"{task} accuracy"] - after[f"{task} accuracy"] for task in REST}
        return {
            "least share of the way to chance": min(way),
            **{f"{task} loss": loss for task, loss in lost.items()},
            "mean loss": statistics.mean(lost.values()),
            "still rude": after["behavior_seen harmful_rate"],
        }

    return outcome


def negation(name: str) -> Callable[..., Figures]:
    """Forget rude replies: rates of rude replies, and what the rest lost."""

    def outcome(lab: Path, seed: int, place: Path, chosen: Settings, known: Mapping[str, Figures]) -> Figures:
        files = {"model": str(lab / "models/original"), "forget": str(lab / "data/behavior/seen.jsonl")}
        run_of(name, files, seed, place, chosen)
        after = scores(place, lab, (*REST, *RUDE), ("accuracy", "harmful_rate"))
        before = scores(lab / "models/original", lab, REST, ("accuracy",))
        lost = {task: before[f"{task} accuracy"] - after[f"{task} accuracy"] for task in REST}
        return {
            **{f"{task} rate": after[f"{task} harmful_rate"] for task in RUDE},
            "general": after["general accuracy"],
            "mean loss": statistics.mean(lost.values()),
        }

    return outcome


def skill(name: str, forgotten: str) -> Callable[..., Figures]:
    """Forget a skill or language by a method without training: relative drops of its accuracy and of all others."""

    def outcome(lab: Path, seed: int, place: Path, chosen: Settings, known: Mapping[str, Figures]) -> Figures:
        path = PATHS[forgotten]
        files = {
            "model": str(lab / "models/original"),
            "forget": str(lab / f"data/{path}/train.jsonl"),
            "retain": str(lab / f"data/keep/{path}.jsonl"),
        }
        run_of(name, files, seed, place, chosen)
        tasks = ("arithmetic", "strings", *(f"language_{x}" for x in PATHS if x not in SKILL_TASKS), "facts_retain", "general")
        before, after = (scores(source, lab, tasks, ("accuracy",)) for source in (lab / "models/original", place))
        drops = {task: 1 - after[f"{task} accuracy"] / before[f"{task} accuracy"] for task in tasks}
        own = forgotten if forgotten in SKILL_TASKS else f"language_{forgotten}"
        rest = {task: drop for task, drop in drops.items() if task != own}
        apart = {task: drop for task, drop in rest.items() if not task.startswith("language")}
        languages = [drop for task, drop in rest.items() if task.startswith("language")]
        return {
            "gone": drops[own],
            "largest other drop": max(rest.values()),
            "largest drop but languages": max(apart.values()),
            "gone more than any language": drops[own] - max(languages),
            "gone as a multiple of the largest other": drops[own] / max(*rest.values(), 0.01),
        }

    return outcome


def tofu(lab: Path, seed: int, place: Path, chosen: Settings, known: Mapping[str, Figures]) -> Figures:
    """A real small Llama on real TOFU rows, as tests/real/test_tofu.py does it, with another training seed."""
    from expunge.cli import main as expunge
    from expunge.records import read_evaluation

    data = Path(os.environ["EXPUNGE_DATA"])
    place.mkdir(parents=True, exist_ok=True)
    rows = (data / "tofu/retain_perturbed.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:TOFU_ROWS]
    (place / "retain.jsonl").write_text("".join(rows), encoding="utf-8")
    forget, retain = str(data / "tofu/forget01.jsonl"), str(place / "retain.jsonl")
    learn = ["--learning-rate", "3e-3", "--batch-size", "16", "--schedule", "cosine", "--weight-decay", "0", "--epochs", "30"]
    ask = ["--suite", "tofu", "--data", str(data / "tofu"), "--forget", "forget01", "--limit", str(TOFU_ROWS), "--overwrite"]
    commands = {
        "original": ["finetune", "--model", str(data / "stories260k"), "--data", forget, retain, *learn],
        "retain-only": ["finetune", "--model", str(data / "stories260k"), "--data", retain, *learn],
    }
    methods = {"npo": ("1e-3", "30"), "gradient_difference": ("8e-4", "10")}
    for method, (rate, epochs) in methods.items():
        files = ["--model", str(place / "original"), "--forget", forget, "--retain", retain]
        how = ["--learning-rate", rate, "--epochs", epochs, "--batch-size", "16", "--retain-weight", "5"]
        commands[method] = ["unlearn", method, *files, *how]
    found: Figures = {}
    for name, words in commands.items():
        for line in (
            [*words, "--seed", str(seed), "--out", str(place / name), "--overwrite"],
            ["evaluate", str(place / name), *ask],
        ):
            if expunge(line) != 0:
                raise RuntimeError(f"expunge {' '.join(line)} failed")
        evaluation = read_evaluation(place / name / "evaluation/tofu.json")
        for task, metric in (("forget", "extraction_strength"), ("retain", "extraction_strength"), ("forget", "rouge_l_recall")):
            score = evaluation.get(task, metric)
            if score is None or score.value is None:
                raise RuntimeError(f"{name} has no {metric} of {task}")
            found[f"{name} {task} {metric}"] = score.value
    for name in methods:
        kept, gone = (
            found[f"original {task} extraction_strength"] - found[f"{name} {task} extraction_strength"]
            for task in ("retain", "forget")
        )
        found[f"{name} forgets more than it loses"] = gone - kept
    return found


TOFU_ROWS = 120
"""Rows of TOFU's retain set that are learned beside the forty to forget."""
SKILL_TASKS = ("arithmetic", "strings")
OUTCOMES: dict[str, Callable[..., Figures]] = {
    "lab": lab_itself,
    "idk": people("idk"),
    "rmu": hazards("rmu"),
    **{name: people(name) for name in PEOPLE},
    "task_vector_negation": negation("task_vector_negation"),
    "spunge_rmu": hazards("spunge_rmu"),
    "spunge_task_vector_negation": negation("spunge_task_vector_negation"),
    **{f"{name} {what}": skill(name, what) for name, parts in SKILLS.items() for what in parts},
    **({"tofu": tofu} if os.environ.get("EXPUNGE_DATA") else {}),
}
"""Every outcome that a test bounds, by name -> what measures it; `tofu` only where EXPUNGE_DATA names the real data."""


# --- in the parent: which cells, in which order, in how many processes ---------------------------------------------------------


def ordered(flags: argparse.Namespace, settings: Mapping[str, Settings]) -> list[tuple[str, int, tuple[str, ...]]]:
    """(arithmetic, seed, outcomes) of each subprocess, the most important first."""
    recipes = [name for name in OUTCOMES if name != "lab" and (not flags.only or name in flags.only)]
    others = [name for name in settings if not flags.only or name in flags.only]
    first = [name for name in others if settings[name]["outcome"] in FIRST]
    own = [a for a in flags.arithmetic if a == "own"]
    rest = [a for a in flags.arithmetic if a != "own"]
    early, late = [n for n in recipes if n in FIRST], [n for n in recipes if n not in FIRST]
    later = [name for name in others if name not in first]
    jobs = []
    for arithmetics, names in ((own, early + first), (rest, early), (own, late), (own, later), (rest, late)):
        for i in range(0, len(names), BATCH):
            jobs += [(a, seed, tuple(names[i : i + BATCH])) for a in arithmetics for seed in flags.seeds]
    return jobs


def lab_cell(flags: argparse.Namespace, arithmetic: str, seed: int) -> Cell:
    """The lab that an arithmetic uses. A lab is made with one thread, so that two threads have that of one."""
    return Cell(arithmetic.partition("-")[0] if flags.labs_each else "own", seed, "lab")


def start(flags: argparse.Namespace, arithmetic: str, seed: int, outcomes: Sequence[str]) -> subprocess.Popen[bytes]:
    log = flags.out / "logs" / f"{arithmetic}-{seed}-{outcomes[0].replace(' ', '_')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    base = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    cache = {"EXPUNGE_CACHE": str((flags.out / "cache" / arithmetic.partition("-")[0]).resolve())} if flags.labs_each else {}
    words = [sys.executable, __file__, "--out", str(flags.out), "--cell", arithmetic, str(seed), *outcomes]
    if flags.labs:
        words += ["--labs", str(flags.labs)]
    if flags.labs_each:
        words.append("--labs-each")
    if flags.settings:
        words += ["--settings", str(flags.settings)]
    with log.open("ab") as file:
        return subprocess.Popen(words, env={**os.environ, **base, **cache, **ARITHMETIC[arithmetic]}, stdout=file, stderr=file)


def schedule(flags: argparse.Namespace, settings: Mapping[str, Settings]) -> None:
    """Labs first, each by one process, and whatever is waiting for a lab that is there, until the time is over."""
    deadline = time.monotonic() + flags.seconds
    cells = dict.fromkeys(lab_cell(flags, a, seed) for a in flags.arithmetic for seed in flags.seeds)
    labs = [(cell.arithmetic, cell.seed, ("lab",)) for cell in cells if not cell.file(flags.out).exists()]
    waiting = ordered(flags, settings)
    running: list[tuple[str, int, subprocess.Popen[bytes]]] = []
    failed = 0
    while (labs or waiting or running) and time.monotonic() < deadline:
        for job in [r for r in running if r[2].poll() is not None]:
            running.remove(job)
            failed += job[2].returncode != 0
        ready = [w for w in waiting if lab_cell(flags, w[0], w[1]).file(flags.out).exists()]
        while len(running) < flags.jobs and (labs or ready):
            arithmetic, seed, names = (labs or ready).pop(0)
            if (arithmetic, seed, names) in waiting:
                waiting.remove((arithmetic, seed, names))
                names = tuple(n for n in names if not Cell(arithmetic, seed, n).file(flags.out).exists())
            if names:
                running.append((arithmetic, seed, start(flags, arithmetic, seed, names)))
        if not running and not ready and not labs:
            break  # the rest waits for labs that failed
        time.sleep(0.5)
    for _, _, process in running:
        process.terminate()
    for _, _, process in running:
        process.wait()
    if failed:
        print(f"{failed} subprocesses failed; see {flags.out / 'logs'}")


def table(out: Path) -> str:
    """Per outcome and figure: how many cells, the median, the worst and where it was."""
    cells = sorted((out / "cells").rglob("*.json"))
    by_outcome: dict[str, list[tuple[str, Figures]]] = {}
    for path in cells:
        where = f"{path.parts[-3]} {path.parts[-2]}"
        by_outcome.setdefault(path.stem, []).append((where, json.loads(path.read_text(encoding="utf-8"))))
    lines = ["| outcome | figure | cells | lowest | median | highest | worst at |", "|---|---|---|---|---|---|---|"]
    order = [*OUTCOMES, *sorted(set(by_outcome) - set(OUTCOMES))]
    for name in (n for n in order if n in by_outcome):
        found = by_outcome[name]
        for figure in found[0][1]:
            values = [(figures[figure], where) for where, figures in found if figure in figures]
            worst = max(values) if any(word in figure for word in LOW_IS_BETTER) else min(values)
            numbers = [value for value, _ in values]
            lines.append(
                f"| {name} | {figure} | {len(values)} | {min(numbers):.4g} | {statistics.median(numbers):.4g} | "
                f"{max(numbers):.4g} | {worst[1]} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=86400.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arithmetic", nargs="+", choices=list(ARITHMETIC), default=list(ARITHMETIC))
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--settings", type=Path)
    parser.add_argument("--labs", type=Path)
    parser.add_argument("--labs-each", action="store_true")
    parser.add_argument("--cell", nargs="+", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    settings: dict[str, Settings] = yaml.safe_load(flags.settings.read_text(encoding="utf-8")) if flags.settings else {}
    if flags.cell:
        measure(flags, settings)
        return
    schedule(flags, settings)
    print(table(flags.out))


if __name__ == "__main__":
    main()
