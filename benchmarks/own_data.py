"""Walks from an empty folder to a report, as a new user does: invented rows, defaults alone, every command and its time.

    python benchmarks/own_data.py --out DIR                                        stories260k: minutes on one core
    python benchmarks/own_data.py --out DIR --model SmolLM2-135M-Instruct --lora   a folder or a hub id: hours on one core

Invents people and writes 20 rows to forget, 30 to keep, and two sets about people that no model ever meets: `holdout`, for the
one run that is given rows never seen, and `never`, which only the measurement reads. The model learns forget and keep rows, then
each method runs with its defaults. With --lora the learned adapter is merged into the model, and each method trains a new one.
The table has mean answer probabilities after the run (of rows, not of tokens), and what the run said of itself.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

TEXTS = (
    "Mira Odran Selva Tovik Elsin Parn Ludo Kesta Ivar Nalia Bren Cora Dagny Eskil Fenna Garo Hesper Isolde Jarek Kaya Lorin",
    "Holt Quill Varga Strand Ember Locke Thorne Wick Marsh Calder Finch Rook Sable Tarn Ulmer Vane Wren Yarrow Zeller Ashby",
    "Lund Oslo Turin Porto Bergen Gdansk Malmo Tours Bath York Riga Split Ghent Basel Cadiz Pisa",
    "baker miller tailor smith farmer sailor painter teacher nurse driver gardener hunter potter weaver carpenter shepherd",
    "cat dog goat horse rabbit parrot turtle snake mouse pig goose lamb duck fox owl pony",
    "plums soup bread honey cheese apples beans rice fish cake nuts pears pie corn jam grapes",
)
FIRST, LAST, TOWNS, TRADES, PETS, FOODS = (text.split() for text in TEXTS)
ABOUT = (
    ("Where does {name} live?", "{name} lives in {value}.", TOWNS),
    ("What is the work of {name}?", "{name} works as a {value}.", TRADES),
    ("What animal does {name} keep?", "{name} keeps a {value}.", PETS),
    ("What does {name} like to eat?", "{name} likes to eat {value}.", FOODS),
)
SETS = {"forget": (10, 2), "keep": (10, 3), "never": (15, 2), "holdout": (10, 2)}
"""People, and questions about each."""
TASKS = {"forget": "forget", "keep": "retain", "never": "control"}
METHODS = ("npo", "simnpo", "gradient_difference", "rmu", "key_space", "task_vector_negation")
NEAR, KEPT = 0.1, 0.9
"""The probability of the forget answers is to come so near to that of rows never seen, with so much of the retain set's left."""


class Walk(NamedTuple):
    """The folder of everything, and how long each command took."""

    folder: Path
    seconds: dict[str, float]

    def run(self, name: str, words: Sequence[str | int | Path]) -> str:
        """Runs `expunge WORDS` in the folder; what it printed. A command that is done (from an earlier call) is not repeated, and
        a run that was stopped goes on."""
        log, done = self.folder / f"{name}.log", self.folder / f"{name}.seconds"
        if not done.is_file():
            if words[0] in ("finetune", "unlearn") and (self.folder / name / "run.yaml").is_file():
                words = [words[0], "--resume", "--out", name]
            print(f"$ expunge {' '.join(map(str, words))}", flush=True)
            began = time.perf_counter()
            with open(log, "wb") as file:
                command = [sys.executable, "-W", "ignore", "-m", "expunge", *map(str, words)]
                code = subprocess.run(command, cwd=self.folder, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
            if code:
                raise SystemExit(f"{name}: exit code {code}\n{log.read_text()[-2000:]}")
            done.write_text(f"{time.perf_counter() - began:.1f}")
        self.seconds[name] = float(done.read_text())
        return log.read_text(encoding="utf-8")


def invent(folder: Path, seed: int) -> None:
    """Writes the four sets, what the model learns, and the suite that measures."""
    draw = random.Random(f"own data/{seed}")
    names = [f"{first} {last}" for first in FIRST for last in LAST]
    draw.shuffle(names)
    sets: dict[str, list[dict[str, str]]] = {}
    for name, (people, questions) in SETS.items():
        mine, names = names[:people], names[people:]
        asked = [(person, about) for person in mine for about in draw.sample(ABOUT, questions)]
        sets[name] = [
            {"prompt": prompt.format(name=person), "response": answer.format(name=person, value=draw.choice(values))}
            for person, (prompt, answer, values) in asked
        ]
    for name, rows in {**sets, "learn": sets["forget"] + sets["keep"]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tasks = "".join(f"- {{name: {t}, data: {t}.jsonl, metrics: [probability], role: {role}}}\n" for t, role in TASKS.items())
    (folder / "suite.yaml").write_text(f"name: own\ntasks:\n{tasks}", encoding="utf-8")


def learned(walk: Walk, model: str, steps: int, *, lora: bool) -> str:
    """The model that knows the rows."""
    words: list[str | int | Path] = ["finetune", "--model", model, "--data", "learn.jsonl", "--out", "learned", "--steps", steps]
    walk.run("learned", [*words, *(["--lora"] if lora else [])])
    if not lora:
        return "learned"
    walk.run("whole", ["merge", "task_arithmetic", "--base", model, "--models", "learned", "--out", "whole"])
    return "whole"


def probabilities(walk: Walk, name: str) -> dict[str, float]:
    """Task -> mean probability of its answers."""
    walk.run(f"{name}-scores", ["evaluate", name, "--suite", "custom", "--data", "suite.yaml", "--out", f"{name}/evaluation"])
    scores = json.loads((walk.folder / name / "evaluation/own.json").read_text(encoding="utf-8"))["scores"]
    return {score["task"]: score["value"] for score in scores if score["metric"] == "probability"}


def row(walk: Walk, name: str, start: dict[str, float], found: dict[str, float]) -> str:
    provenance = walk.folder / name / "provenance.json"
    record = json.loads(provenance.read_text(encoding="utf-8")) if provenance.is_file() else {}
    log = walk.folder / name / "metrics.jsonl"
    steps = str(len(log.read_text().splitlines())) if log.is_file() else "-"
    said = (record.get("self_check") or {}).get("said", ["-"])[1:]
    kept = found["keep"] / start["keep"]
    good = abs(found["forget"] - found["never"]) <= NEAR and kept >= KEPT
    cells = [
        name,
        steps,
        f"{walk.seconds.get(name, 0):.0f}",
        *(f"{found[task]:.3f}" for task in ("forget", "never")),
        f"{kept:.3f}",
    ]
    return "| " + " | ".join([*cells, "yes" if good else "no", "; ".join(said) or "as it should be"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="stories260k", help="stories260k (in EXPUNGE_DATA), a folder or a hub id")
    parser.add_argument("--lora", action="store_true", help="learn and forget by adapters")
    parser.add_argument("--steps", type=int, default=150, help="of learning the rows")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    model = str(Path(os.environ["EXPUNGE_DATA"]) / "stories260k") if flags.model == "stories260k" else flags.model
    flags.out.mkdir(parents=True, exist_ok=True)
    walk = Walk(flags.out, {})
    invent(flags.out, flags.seed)
    place = learned(walk, model, flags.steps, lora=flags.lora)
    start = probabilities(walk, place)
    head = f"| run | steps | seconds | forget | never seen | retain kept | within {NEAR}, {KEPT} kept | self-check |\n"
    table = [head + "|---|---|---|---|---|---|---|---|", row(walk, place, start, start)]
    data = ["--model", place, "--forget", "forget.jsonl", "--retain", "keep.jsonl"]
    named = {method: [method, *data, "--out", method] for method in flags.methods}
    if "npo" in named:
        named["npo-holdout"] = ["npo", *data, "--holdout", "holdout.jsonl", "--out", "npo-holdout"]
    for name, words in named.items():
        trains = name != "key_space"
        walk.run(name, ["unlearn", *words, *(["--lora"] if flags.lora and trains else [])])
        table.append(row(walk, name, start, probabilities(walk, name)))
        print(table[-1], flush=True)
    walk.run("report", ["report", *named, "--original", place, "--out", "report", "--overwrite"])
    print("\n" + "\n".join(table))
    print("\nseconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in walk.seconds.items()))


if __name__ == "__main__":
    main()
