"""The attack ladder over lab seeds and methods, and over the gold model, which must pass it.

    python benchmarks/attacks_ladder.py --out DIR [--seeds 2024 31337 86] [--labs DIR] [--methods idk npo gold ...]
                                        [--attacks ladder] [--table-only]

For each lab seed and each method the lab's people are forgotten by recipes/lab/METHOD.yaml as it stands, and all attacks are run
on the result with their default budget; `gold` is the lab's own gold model, attacked with its never-known facts as the control.
Runs and attacks that are finished are not made again, so that a killed benchmark goes on when it is started again. Written:
DIR/table.md (gains over the control, mean over seeds, and for how many seeds each is above zero after correction for the number
of attacks), DIR/ladder-SEED.svg (the figure of the report) and, printed, wall and processor time of each ladder.

--rounded-start FORMAT   forget from the original model rounded to that format, as where a model is published in 4 bits
--labs DIR    labs in DIR/SEED; left out, they are made in --out or taken from the cache (three minutes each)
--methods     recipes; with other training settings: npo+sharpness_aware=0.01, npo+learning_rate=5e-5+quantization_aware=q4_0
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml

from expunge.attacks import ATTACKS, named
from expunge.attacks.run import attack, read_attack
from expunge.attacks.sources import sources
from expunge.evaluation.objectives import build_objective
from expunge.lab import build
from expunge.lab.tokenizer import FORMAT
from expunge.loading import open_model
from expunge.models.rounding import ROUNDINGS, compress
from expunge.models.save import save_model
from expunge.recipes import recipe
from expunge.records import Attack, write_text
from expunge.report import RunRecord
from expunge.report.ladder import ladder, significant
from expunge.run import execute
from expunge.spec import Run
from expunge.spec import build as build_spec

METHODS = (
    "gold", "idk", "npo", "embedding_corruption", "key_space", "simnpo", "gradient_difference", "task_vector_negation", "rmu",
)  # fmt: skip
ORDER = [cls.attack_name() for cls in ATTACKS]


def run_of(name: str, lab: Path, seed: int, start: Path | None = None) -> Run:
    """The recipe of the method, with the lab's people to forget, the kept facts and the never-known people."""
    name, *changes = name.split("+")
    said, data = recipe(f"lab/{name}"), lab / "data"
    words: dict[str, Any] = {"model": str(start or lab / "models/original"), "forget": str(data / "facts/forget.jsonl")}
    words["holdout"] = str(data / "facts/never_known.jsonl")
    if name not in ("gradient_ascent", "task_vector_negation"):
        words["retain"] = [str(data / "keep/facts.jsonl")]
    if name == "embedding_corruption":  # its gate tells names apart, and needs those of the public people too
        words["retain"].append(str(data / "facts/public.jsonl"))
    if name == "idk":
        words["refusals"] = str(data / "refusals.txt")
    changed = {field: yaml.safe_load(value) for field, _, value in (change.partition("=") for change in changes)}
    training = {**said.get("training", {}), "seed": seed, **changed}
    if "disruption_budget" in changed:  # WikiText has none of the lab's words
        words["neutral"] = str(data / "general/corpus.jsonl")
    return build_spec(Run, {**said, **words, "training": training}, name)


def rounded(lab: Path, format: str, folder: Path) -> Path:
    """The lab's original model on the grid of a format."""
    if not (folder / "config.json").is_file():
        found = open_model(lab / "models/original")
        compress(found.model, ROUNDINGS[format])
        save_model(folder, found.model, found.tokenizer, FORMAT)
    return folder


def attacked(name: str, lab: Path, seed: int, folder: Path, wanted: Sequence[str], start: Path | None = None) -> None:
    """Makes the run where it is missing, and runs the attacks that are missing."""
    place = lab / "models/gold"
    if name != "gold":
        place = folder
        if not (folder / "artifact/expunge.json").is_file():
            execute(run_of(name, lab, seed, start), folder, resume=folder.exists(), quiet=True, build_objective=build_objective)
    out = folder / "attacks"
    done = {read_attack(file).attack for file in out.glob("*.json") if file.name != "ladder.json"} if out.is_dir() else set()
    attacks = {label: spec for label, spec in named(wanted).items() if label not in done}
    if not attacks:
        return
    began, cpu = time.perf_counter(), time.process_time()
    attack(place, attacks, sources(str(place), suite="lab", data=lab), out=out, seed=seed, quiet=True)
    wall, spent = time.perf_counter() - began, time.process_time() - cpu
    print(f"{seed} {name}: {len(attacks)} attacks, {wall:.0f} s, {spent:.0f} s of processor time", flush=True)


def records(folder: Path) -> tuple[Attack, ...]:
    files = [file for file in (folder / "attacks").glob("*.json") if file.name != "ladder.json"]
    return tuple(sorted((read_attack(file) for file in files), key=lambda one: ORDER.index(one.attack.partition(":")[0])))


def table(found: Mapping[str, Sequence[Sequence[Attack]]]) -> str:
    """Markdown: attack by method; mean gain over seeds, and in how many of them it is above zero."""
    lines = [f"| attack | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for name in ORDER:
        cells = [_cell([(one, seed) for seed in seeds for one in seed if one.attack == name]) for seeds in found.values()]
        if any(cells):
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    failed = [
        [sum(significant(one, sum(a.applicable for a in seed)) for one in seed) for seed in seeds] for seeds in found.values()
    ]
    lines.append(f"| attacks that it fails, by seed | {' | '.join(', '.join(map(str, counts)) for counts in failed)} |")
    cpu = [[sum(one.cost.get("cpu_seconds", 0.0) for one in seed) for seed in seeds] for seeds in found.values()]
    lines.append(f"| seconds of processor time | {' | '.join(', '.join(f'{s:.0f}' for s in own) for own in cpu)} |")
    return "\n".join(lines) + "\n"


def _cell(own: Sequence[tuple[Attack, Sequence[Attack]]]) -> str:
    if not own:
        return ""
    gains = [one.gain.value for one, _ in own if one.gain is not None and one.gain.value is not None]
    if not gains:
        return "not applicable" if not own[0][0].applicable else "no gain"
    above = sum(significant(one, sum(a.applicable for a in seed)) for one, seed in own)
    text = f"{sum(gains) / len(gains):+.2f}".replace("-", "−")
    return f"**{text}** ({above}/{len(own)})" if above else f"{text} (0/{len(own)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2024, 31337, 86])
    parser.add_argument("--labs", type=Path)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--attacks", nargs="+", default=["ladder"])
    parser.add_argument("--rounded-start", choices=list(ROUNDINGS))
    parser.add_argument("--table-only", action="store_true", help="only write the table and the figures of what is there")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    for seed in flags.seeds if not flags.table_only else ():
        lab = flags.labs / str(seed) if flags.labs is not None else flags.out / str(seed) / "lab"
        if not (lab / "models/gold").is_dir():
            build(lab, seed=seed, quiet=True)
        for name in flags.methods:
            start = rounded(lab, flags.rounded_start, flags.out / str(seed) / "start") if flags.rounded_start else None
            attacked(name, lab, seed, flags.out / str(seed) / name, flags.attacks, start)
    seeds = [seed for seed in flags.seeds if (flags.out / str(seed)).is_dir()]
    found = {name: [own for seed in seeds if (own := records(flags.out / str(seed) / name))] for name in flags.methods}
    found = {name: seeds for name, seeds in found.items() if seeds}
    text = table(found)
    write_text(flags.out / "table.md", text)
    print(text)
    for seed in seeds:
        runs = [
            RunRecord(name=n, folder=f, attacks=records(f)) for n in flags.methods if (f := flags.out / str(seed) / n).is_dir()
        ]
        if (figure := ladder(runs, f"ladder-{seed}")) is not None:
            write_text(flags.out / f"ladder-{seed}.svg", figure)


if __name__ == "__main__":
    main()
