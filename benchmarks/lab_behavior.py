"""Rude replies in the lab: SKU and Ext-Sub beside their papers' baselines and ablations, and plain negation over its whole scale.

    python benchmarks/lab_behavior.py LAB [LAB ...] --out DIR                  one table over all labs; DIR/frontier.svg
    python benchmarks/lab_behavior.py LAB --out DIR --only "SKU without disassociation"        one row, such as an ablation

LAB is a folder of `expunge lab`. `rude` is the share of greedy replies with a rude word, `polite` with a kind one and no rude
one: on provoking prompts that were unlearned (seen), on others (unseen), and on calm ones. `kept` is the probability of retained
people's answers over the original's (retain_kept), `general` the accuracy on four-choice questions.

Everything comes from recipes/lab but for what a row names. All learn bad replies from the same rows: rude ones to provoking
prompts and to calm ones (the original is always rude where it is provoked, so that only the latter teach it anything).
Fine-tuning, and the expert of Ext-Sub, learn polite replies to the provoking prompts beside the mix that keeps the rest; "few" is
such an expert with polite replies to six of them. Each row is kept in DIR; after an interruption the same command goes on.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from expunge.data.example import Example
from expunge.evaluation.metrics import HarmfulRate
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites.lab import Lab
from expunge.lab.behavior import KIND_WORDS
from expunge.lab.layout import as_row
from expunge.lab.retain_mix import polite_replies, rude_replies
from expunge.lab.rude_words import RUDE_WORDS
from expunge.lab.size import SIZES
from expunge.lab.world import generate
from expunge.loading import load
from expunge.recipes import recipe
from expunge.run import execute
from expunge.spec import FineTuneRun, Run, build

BEHAVIORS = ("seen", "unseen", "normal")
COLUMNS = {
    **{f"behavior_{b}": f"rude {b}" for b in BEHAVIORS},
    **{f"polite_{b}": f"polite {b}" for b in BEHAVIORS},
    "kept": "kept",
    "general": "general",
}
FEW = 6
"""Provoking prompts with a polite reply, of 72, in the second setting of Ext-Sub."""
SKU, NEGATION, PIPELINE = "sku", "task_vector_negation", "ext_sub_pipeline"
Row = dict[str, float]

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "fine-tuning": ("finetune", {}),
    "gradient ascent": ("gradient_ascent", {}),
    "gradient ascent + mismatch": ("mismatch", {}),
    "negation, its recipe": ("negation_recipe", {}),
    "SKU": (SKU, {}),
    "SKU, disassociation 2.5": (SKU, {"disassociation_weight": 2.5}),
    "SKU without disassociation": (SKU, {"disassociation_weight": 0.0}),
    "SKU without preservation": (SKU, {"preservation_weight": 0.0}),
    "SKU without the loss on the result": (SKU, {"result_weight": 0.0}),
    "SKU without rude replies to calm prompts": ("sku_seen", {}),
    "Ext-Sub": (PIPELINE, {}),
    "plain subtraction": (PIPELINE, {"arithmetic": "adapter_subtraction"}),
    "expert alone": (PIPELINE, {"arithmetic": "expert"}),
    "Ext-Sub, few": ("few", {}),
    "plain subtraction, few": ("few", {"arithmetic": "adapter_subtraction"}),
    "expert alone, few": ("few", {"arithmetic": "expert"}),
}
"""Label -> (what is trained, fields of the method that differ). Rows of one training differ in arithmetic alone."""

FRONTIERS = {
    "negation": (NEGATION, "scale", (0.5, 1.0, 1.5, 2.0, 3.0)),
    "SKU": (SKU, "scale", (1.0, 2.0, 3.0, 3.5, 4.0)),
    "Ext-Sub": (PIPELINE, "alpha", (0.5, 1.0, 1.5, 2.0)),
    "Ext-Sub, few": ("few", "alpha", (0.5, 1.0, 1.5, 2.0)),
}
"""Label -> (what is trained, the field whose values are drawn, these values)."""
COLOURS = ("#1f6fb2", "#c4511b", "#349669", "#5b646d")
"""One for each frontier."""


def measured(source: str | Path, lab: Path) -> Row:
    """Rates by name, and the probability of retained people's answers."""
    suite = Lab().build(lab)
    tasks = []
    for task in suite.tasks:
        if task.name.startswith("behavior_"):
            either = HarmfulRate(words=(*KIND_WORDS, *RUDE_WORDS))
            tasks += [task, replace(task, name=task.name.replace("behavior", "either"), metrics=(either,))]
        elif task.name == "facts_retain":
            tasks.append(replace(task, metrics=tuple(m for m in task.metrics if m.metric_name() == "probability"), shown=0))
        elif task.name == "general":
            tasks.append(task)
    model, tokenizer = load(source)
    found = evaluate(model, tokenizer, suite=replace(suite, tasks=tuple(tasks), summarize=lambda _: []), quiet=True)
    row = {score.task: score.value for score in found.scores if score.value is not None}
    for name in BEHAVIORS:  # with a kind word and no rude one = with either - with a rude one
        row[f"polite_{name}"] = row.pop(f"either_{name}") - row[f"behavior_{name}"]
    return row


class Bench:
    """Trains and measures the rows of one lab; keeps them in a file."""

    def __init__(self, lab: Path, out: Path, scratch: Path) -> None:
        self.lab, self.scratch = lab, scratch
        self.model = str(lab / "models/original")
        about = json.loads((lab / "world.json").read_text(encoding="utf-8"))
        world, seed = generate(about["seed"], SIZES[about["size"]]), about["seed"]
        polite = polite_replies(world, seed)
        prompts = list(dict.fromkeys(row.prompt for row in polite))[:FEW]
        self.seen, self.keep = str(lab / "data/behavior/seen.jsonl"), str(lab / "data/keep/behavior.jsonl")
        self.rude = self._file("rude", rude_replies(world, seed))
        self.polite = self._file("polite", polite)
        self.few = self._file("few", [row for row in polite if row.prompt in prompts])
        self.file = out / f"rows_{about['seed']}.json"
        self.rows: dict[str, Row] = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def _file(self, name: str, rows: Sequence[Example]) -> str:
        path = self.scratch / f"{name}.jsonl"
        path.write_text("".join(json.dumps(as_row(row)) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    def row(self, label: str, source: str | Path) -> None:
        self.rows[label] = measured(source, self.lab)
        self.file.write_text(json.dumps(self.rows, indent=1))
        print(label, json.dumps(self.rows[label]), flush=True)

    def trained(self, name: str, fields: Mapping[str, Any]) -> Path:
        """The run of a row; one that differs in arithmetic alone takes what was trained for the others."""
        out = self.scratch / name / "_".join(f"{k}_{v}" for k, v in fields.items() if k.endswith("weight"))
        common: dict[str, Any] = {"model": self.model, "forget": [self.seen, self.rude]}
        if name == "finetune":
            said = recipe(f"lab/{PIPELINE}")["training"] | {"lora": False, "epochs": 1}
            run: Any = build(FineTuneRun, {"model": self.model, "data": [self.polite, self.keep], "training": said}, name)
        elif name in ("gradient_ascent", "mismatch"):
            # the recipes stop where facts are unknown, which replies never are: a fixed length instead
            said = recipe("lab/gradient_ascent" if name == "gradient_ascent" else "lab/mismatch")
            said["training"] |= {"stop_when_unknown": False, "steps": 20, "batch_size": 16}
            retain = {"retain": [self.keep]} if name == "mismatch" else {}
            run = build(Run, {**said, **common, **retain, "forget": self.seen}, name)
        elif name == NEGATION:  # of SKU's rows, weights and steps: what its other two terms add is the difference
            said = recipe("lab/sku")
            method = {"name": NEGATION, "parameters": said["method"]["parameters"], **fields}
            run = build(Run, {"training": said["training"], **common, "method": method}, name)
        elif name == "negation_recipe":
            run = build(Run, {**recipe(f"lab/{NEGATION}"), **common, "forget": self.seen}, name)
        else:
            said = recipe(f"lab/{PIPELINE if name == 'few' else name.removesuffix('_seen')}")
            good = {PIPELINE: [self.polite], "few": [self.few]}.get(name, [])
            common["forget"] = self.seen if name == "sku_seen" else common["forget"]
            run = build(Run, {**said, **common, "method": {**said["method"], **fields}, "retain": [*good, self.keep]}, name)
        execute(run, out, quiet=True, resume=out.exists())
        return out

    def frontier(self, label: str, name: str, field: str, values: Sequence[float]) -> None:
        missing = [value for value in values if f"{label} x {value:g}" not in self.rows]
        if not missing:
            return
        if name == NEGATION:
            for value in missing:
                self.row(f"{label} x {value:g}", self.trained(name, {field: value}))
            return
        out = self.trained(name, {field: list(values)})
        for value in missing:
            self.row(f"{label} x {value:g}", out / f"scales/{value:g}")

    def all(self, only: Sequence[str]) -> None:
        if "original" not in self.rows:
            self.row("original", self.model)
        for label, (name, fields) in ROWS.items():
            if label not in self.rows and (not only or label in only):
                self.row(label, self.trained(name, fields))
        for label, (name, field, values) in FRONTIERS.items():
            if not only or f"{label} x" in only:
                self.frontier(label, name, field, values)
        for row in self.rows.values():
            row["kept"] = row["facts_retain"] / self.rows["original"]["facts_retain"]


def table(per_lab: Sequence[Mapping[str, Row]]) -> str:
    """Means over labs, the worst in brackets where there are several."""
    lines = [f"| | {' | '.join(COLUMNS.values())} |", "| --- |" + " --- |" * len(COLUMNS)]
    for label in (label for label in per_lab[0] if all(label in rows for rows in per_lab)):
        cells = []
        for name in COLUMNS:
            values = [rows[label][name] for rows in per_lab]
            worst = max(values) if name.startswith("behavior") else min(values)
            cells.append(f"{fmean(values):.2f}" + (f" ({worst:.2f})" if len(values) > 1 else ""))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(per_lab: Sequence[Mapping[str, Row]], file: Path) -> None:
    """What is kept against rude and polite replies to unseen provoking prompts: a line per method over its scale."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axes, manner in zip(both, ("rude", "polite"), strict=True):
        key = "behavior_unseen" if manner == "rude" else "polite_unseen"
        numbered: list[tuple[float, float]] = []
        for (label, marker), colour in zip(zip(FRONTIERS, "osv^", strict=True), COLOURS, strict=True):
            points = [name for name in per_lab[0] if name.startswith(f"{label} x ")]
            scales = [name.rsplit(" x ", 1)[1] for name in points]
            x, y = ([fmean(rows[name][k] for rows in per_lab) for name in points] for k in (key, "kept"))
            axes.plot(x, y, marker=marker, color=colour, label=f"{label} (scale {scales[0]} to {scales[-1]})")
            for scale, a, b in zip(scales, x, y, strict=True):
                if all(abs(a - c) > 0.04 or abs(b - d) > 0.03 for c, d in numbered):  # numbers that would overlap are left out
                    axes.annotate(scale, (a, b), fontsize=8, xytext=(5, -11), textcoords="offset points")
                    numbered.append((a, b))
        axes.set_xlabel(f"share of {manner} replies to unseen provoking prompts")
        axes.set_xlim(-0.04, 1.08)
        axes.grid(color="#d8dde2", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel("probability of retained answers,\nas a share of the original's")
    both[0].legend(loc="lower right", frameon=False)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], help='labels of the rows to make, "SKU x" for a frontier; default: all')
    flags = parser.parse_args()
    known = [*ROWS, *(f"{label} x" for label in FRONTIERS)]
    if unknown := [label for label in flags.only if label not in known]:
        parser.error(f"there is no row '{unknown[0]}'; the rows are {', '.join(known)}")
    flags.out.mkdir(parents=True, exist_ok=True)
    found = []
    for lab in flags.labs:
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(lab, flags.out, Path(scratch))
            bench.all(flags.only)
            shutil.rmtree(scratch, ignore_errors=True)
        found.append(bench.rows)
    print(table(found))
    if not flags.only:
        plot(found, flags.out / "frontier.svg")


if __name__ == "__main__":
    main()
