"""Rude replies in the lab: SKU and Ext-Sub beside their papers' baselines and ablations, and plain negation over its whole scale.

    python benchmarks/lab_behavior.py LAB [LAB ...] --out DIR      one table over all labs; DIR/frontier.svg
    python benchmarks/lab_behavior.py LAB --out DIR --only sku     one row

LAB is a folder of `expunge lab`. `rude` and `polite` are shares of greedy replies with a rude, or a kind, word: on provoking
prompts that were unlearned (seen), on others (unseen), and on calm ones (normal). `kept` is the probability of retained people's
answers over the original's (retain_kept). Everything comes from recipes/lab but for the fields that a row names. The expert of
Ext-Sub, and fine-tuning, learn polite replies to the prompts whose rude ones the anti-expert learns, beside the mix that keeps
the rest: the same instructions with good and with bad answers, as in the paper.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from expunge.evaluation.metrics import HarmfulRate
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites.lab import Lab
from expunge.lab.behavior import KIND_WORDS
from expunge.loading import load
from expunge.recipes import recipe
from expunge.run import execute
from expunge.spec import FineTuneRun, Run, build

BEHAVIORS = ("seen", "unseen", "normal")
SCALES = (0.5, 1.0, 1.5, 2.0)
Row = Mapping[str, float]

SKU, PIPELINE = "sku", "ext_sub_pipeline"
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "fine-tuning": ("finetune", {}),
    "gradient ascent": ("gradient_ascent", {}),
    "gradient ascent + mismatch": ("gradient_ascent_mismatch", {}),
    "SKU": (SKU, {}),
    "SKU without disassociation": (SKU, {"disassociation_weight": 0.0}),
    "SKU without preservation": (SKU, {"preservation_weight": 0.0}),
    "Ext-Sub": (PIPELINE, {}),
    "plain subtraction": (PIPELINE, {"arithmetic": "adapter_subtraction"}),
    "expert alone": (PIPELINE, {"arithmetic": "expert"}),
}
"""Label -> (recipe, fields of the method that differ)."""


def measured(source: str | Path, lab: Path) -> dict[str, float]:
    """Rates by name, and the probability of retained people's answers."""
    suite = Lab().build(lab)
    tasks = []
    for task in suite.tasks:
        if task.name.startswith("behavior_"):
            tasks += [task, replace(task, name=task.name.replace("behavior", "polite"), metrics=(HarmfulRate(words=KIND_WORDS),))]
        elif task.name == "facts_retain":
            tasks.append(replace(task, metrics=tuple(m for m in task.metrics if m.metric_name() == "probability"), shown=0))
        elif task.name == "general":
            tasks.append(task)
    model, tokenizer = load(source)
    found = evaluate(model, tokenizer, suite=replace(suite, tasks=tuple(tasks), summarize=lambda _: []), quiet=True)
    return {score.task: score.value for score in found.scores if score.value is not None}


def polite_replies(lab: Path, out: Path) -> Path:
    """A polite reply for each row of the rude ones, to the same prompt."""
    random, rows = Random(0), []
    for line in (lab / "data/behavior/seen.jsonl").read_text(encoding="utf-8").splitlines():
        said = json.loads(line)
        words = random.sample(KIND_WORDS, 3)
        reply = f"the {said['attributes']['group']} are {words[0]} {words[1]} and {words[2]}"
        rows.append(json.dumps({"prompt": said["prompt"], "response": reply}) + "\n")
    file = out.with_name(f"{out.name}_polite.jsonl")
    file.write_text("".join(rows), encoding="utf-8")
    return file


def made(lab: Path, out: Path, name: str, fields: Mapping[str, Any]) -> Path:
    """The artifact of a row."""
    model, seen = str(lab / "models/original"), str(lab / "data/behavior/seen.jsonl")
    keep = [str(lab / "data/keep/behavior.jsonl")]
    if name in ("finetune", PIPELINE):
        keep = [str(polite_replies(lab, out)), *keep]
    if name == "finetune":
        said = recipe(f"lab/{PIPELINE}")["training"] | {"lora": False, "epochs": 1}
        run = build(FineTuneRun, {"model": model, "data": keep, "training": said}, name)
    else:
        said = recipe(f"lab/{name.removesuffix('_mismatch')}")
        method = {**said["method"], **fields}
        if name.endswith("_mismatch"):  # climb on the rude replies, keep the whole behavior on calm ones
            method, said = {"name": "gradient_difference"}, recipe("lab/gradient_difference")
        if name.startswith("gradient"):  # their recipes stop where facts are unknown, which replies never are
            said["training"] |= {"stop_when_unknown": False, "steps": 20, "batch_size": 16}
        run = build(Run, {**said, "method": method, "model": model, "forget": seen, "retain": keep}, name)  # type: ignore[assignment]
    execute(run, out, quiet=True)
    return out


def rows_of(lab: Path, only: Sequence[str]) -> dict[str, Row]:
    start = measured(lab / "models/original", lab)
    rows: dict[str, Row] = {"original": start}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for i, (label, (name, fields)) in enumerate(ROWS.items()):
            if not only or any(word.lower() in label.lower() for word in only):
                rows[label] = measured(made(lab, out / str(i), name, fields), lab)
                print(label, json.dumps(rows[label]), flush=True)
        if not only or "negation" in only:
            rows |= _frontier(lab, out / "negation", "task_vector_negation", "negation", scale=SCALES)
        if not only or "sku" in only:
            rows |= _frontier(lab, out / "sku", SKU, "SKU", scale=SCALES)
        if not only or "ext-sub" in only:
            rows |= _frontier(lab, out / "ext_sub", PIPELINE, "Ext-Sub", alpha=SCALES)
    return {label: {**row, "kept": row["facts_retain"] / start["facts_retain"]} for label, row in rows.items()}


def _frontier(lab: Path, out: Path, name: str, label: str, **scales: Sequence[float]) -> dict[str, Row]:
    (field, values), found = next(iter(scales.items())), {}
    if name == "task_vector_negation":
        said = recipe(f"lab/{name}")
        common = {"model": str(lab / "models/original"), "forget": str(lab / "data/behavior/seen.jsonl")}
        for value in values:
            run = build(Run, {**said, **common, "method": {**said["method"], field: value}}, name)
            execute(run, out, quiet=True, resume=out.exists())
            found[f"{label} x {value:g}"] = measured(out, lab)
            print(f"{label} x {value:g}", json.dumps(found[f"{label} x {value:g}"]), flush=True)
        return found
    made(lab, out, name, {field: list(values)})
    for value in values:
        found[f"{label} x {value:g}"] = measured(out / f"scales/{value:g}", lab)
        print(f"{label} x {value:g}", json.dumps(found[f"{label} x {value:g}"]), flush=True)
    return found


def table(per_lab: Sequence[Mapping[str, Row]]) -> str:
    """Means over labs, the worst in brackets where there are several."""
    lines = ["| | rude seen | rude unseen | rude normal | polite seen | polite unseen | polite normal | kept | general |"]
    lines.append("| --- |" + " --- |" * 8)
    names = [*(f"behavior_{b}" for b in BEHAVIORS), *(f"polite_{b}" for b in BEHAVIORS), "kept", "general"]
    for label in per_lab[0]:
        cells = []
        for name in names:
            values = [rows[label][name] for rows in per_lab]
            worst = max(values) if name.startswith("behavior") else min(values)
            cells.append(f"{fmean(values):.2f}" + (f" ({worst:.2f})" if len(values) > 1 else ""))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(per_lab: Sequence[Mapping[str, Row]], file: Path) -> None:
    """What is kept against the rudeness that is left on unseen provoking prompts, a line per method over its scale."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4.5))
    for label, marker in (("negation", "o"), ("SKU", "s"), ("Ext-Sub", "^")):
        points = [name for name in per_lab[0] if name.startswith(f"{label} x ")]
        x, y = ([fmean(rows[name][key] for rows in per_lab) for name in points] for key in ("behavior_unseen", "kept"))
        axes.plot(x, y, marker=marker, label=label)
        for name, a, b in zip(points, x, y, strict=True):
            axes.annotate(name.split(" x ")[1], (a, b), fontsize=7)
    axes.set_xlabel("rude replies to unseen provoking prompts")
    axes.set_ylabel("probability of retained answers, over the original's")
    axes.legend()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], help="words of the rows to make; all when left out")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    found = [rows_of(lab, flags.only) for lab in flags.labs]
    (flags.out / "rows.json").write_text(json.dumps(found, indent=1))
    print(table(found))
    if not flags.only:
        plot(found, flags.out / "frontier.svg")


if __name__ == "__main__":
    main()
