"""Truthfulness of a real instruction-tuned model: SKU and Ext-Sub on HaluEval's answers, scored on TruthfulQA, with intervals.

    python benchmarks/behavior_real.py MODEL DATA --out DIR            SmolLM2-135M-Instruct: 20 minutes of one idle core
    python benchmarks/behavior_real.py MODEL DATA --out DIR --steps 4 --sku-steps 4 --every 100        a look at whether it runs

DATA holds halueval/ and truthfulqa/ as published. The expert learns the right answers of HaluEval's questions, the anti-expert
the made-up ones, from one seed; SKU acquires the made-up answers, with the right ones as normal prompts. Each sixth question of
TruthfulQA (--every) is scored by mc1 and mc2, and each model's difference to the start model on the same questions.

Each row is kept in DIR, and not made again: after an interruption the same command goes on. Other sizes need another DIR.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from expunge import Training, evaluate, load, unlearn
from expunge.evaluation.statistics import bootstrap_interval
from expunge.evaluation.suites.truthfulness import Truthfulness
from expunge.merging import merge_adapters
from expunge.methods import SKU, AdapterSubtraction, ExtSubPipeline
from expunge.records import Sample

PARAMETERS = r"\.(q|v)_proj"
METRICS = ("mc1", "mc2")
Values = dict[str, list[float]]
"""Metric -> a value per question, in order."""


class Work(NamedTuple):
    """The sizes, and where everything is."""

    model: str
    data: Path
    out: Path
    steps: int
    sku_steps: int
    batch: int
    answers: int
    every: int

    def sources(self) -> tuple[str, str]:
        """HaluEval's right and made-up answers."""
        right, made_up = (f"{self.data}:halueval/qa_one_turn/{kind}" for kind in ("right", "hallucinated"))
        return right, made_up

    def training(self, steps: int, batch: int) -> Training:
        return Training(
            steps=steps, batch_size=batch, learning_rate=5e-4, lora=True, lora_rank=16, lora_alpha=32, max_grad_norm=1.0
        )


def pair(work: Work) -> Path:
    """Both adapters, and Ext-Sub of them."""
    out, (right, made_up) = work.out / "pair", work.sources()
    if not (out / "artifact/expunge.json").is_file():
        unlearn(
            ExtSubPipeline(parameters=PARAMETERS),
            model=work.model, forget=made_up, retain=right, training=work.training(work.steps, work.batch), max_length=512,
            out=out, quiet=True, resume=out.exists(),
        )  # fmt: skip
    return out


def subtraction(work: Work) -> Path:
    out, run = work.out / "subtraction", pair(work)
    if not (out / "artifact/expunge.json").is_file():
        merge_adapters(AdapterSubtraction(), models=[run / "expert", run / "anti_expert"], out=out, overwrite=True)
    return out


def negation(work: Work) -> Path:
    """Plain negation of what the made-up answers teach: the anti-expert minus twice itself."""
    out, anti = work.out / "negation", pair(work) / "anti_expert"
    if not (out / "artifact/expunge.json").is_file():
        merge_adapters(AdapterSubtraction(alpha=2.0), models=[anti, anti], out=out, overwrite=True)
    return out


def sku(work: Work, name: str, **weights: float) -> Path:
    out, (right, made_up) = work.out / name, work.sources()
    if not (out / "artifact/expunge.json").is_file():
        unlearn(
            SKU(parameters=PARAMETERS, answers=work.answers, cap=1.0, **weights),  # type: ignore[arg-type]
            model=work.model, forget=made_up, retain=right, training=work.training(work.sku_steps, max(work.batch // 2, 1)),
            max_length=512, out=out, quiet=True, resume=out.exists(),
        )  # fmt: skip
    return out


EXT_SUB: dict[str, Callable[[Work], str | Path]] = {
    "start": lambda work: work.model,
    "expert alone (fine-tuning)": lambda work: pair(work) / "expert",
    "plain subtraction": subtraction,
    "Ext-Sub": pair,
}
OF_SKU: dict[str, Callable[[Work], str | Path]] = {
    "SKU": lambda work: sku(work, "sku"),
    "SKU without disassociation": lambda work: sku(work, "sku_1", disassociation_weight=0.0),
    "SKU without preservation": lambda work: sku(work, "sku_2", preservation_weight=0.0),
    "task-vector negation (of the anti-expert)": negation,
}


def values(work: Work, label: str, make: Callable[[Work], str | Path]) -> Values:
    """The row's values, from its file if it was scored before."""
    file = work.out / f"{label.split(' (')[0].replace(' ', '_')}.json"
    if file.is_file():
        found: Values = json.loads(file.read_text())
        return found
    model, tokenizer = load(make(work))
    suite = Truthfulness(tasks=("truthfulqa",), generation=False).build(work.data)
    task = suite.tasks[0]
    metrics = tuple(m for m in task.metrics if m.metric_name() in METRICS)
    task = replace(task, examples=task.examples[:: work.every], metrics=metrics)
    scores = file.with_suffix("")
    evaluate(model, tokenizer, suite=replace(suite, tasks=(task,)), out=scores, overwrite=True, quiet=True)
    samples = [Sample.model_validate_json(line) for line in (scores / "truthfulness.samples.jsonl").read_text().splitlines()]
    found = {m: [s.value for s in samples if s.metric == m and s.value is not None] for m in METRICS}
    if any(len(found[m]) != len(task.examples) for m in METRICS):
        raise SystemExit(f"{label}: a question could not be scored, so that its row cannot be compared with others")
    file.with_suffix(".new").write_text(json.dumps(found))
    file.with_suffix(".new").rename(file)
    return found


def cell(numbers: list[float], *, sign: bool = False) -> str:
    array = np.asarray(numbers)
    low, high = bootstrap_interval(array) or (float("nan"), float("nan"))
    return f"{array.mean():{'+' if sign else ''}.3f} ({low:.3f} .. {high:.3f})"


def row(label: str, found: Values, start: Values) -> str:
    cells = [cell(found[m]) for m in METRICS]
    cells += [
        "" if found is start else cell([a - b for a, b in zip(found[m], start[m], strict=True)], sign=True) for m in METRICS
    ]
    return f"| {label} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30, help="of the expert and the anti-expert")
    parser.add_argument("--sku-steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="rows a step; half as many for SKU, whose steps have more")
    parser.add_argument("--answers", type=int, default=2, help="mismatched answers a prompt (K)")
    parser.add_argument("--every", type=int, default=6, help="score every so many of TruthfulQA's 817 questions")
    work = Work(**vars(parser.parse_args()))
    work.out.mkdir(parents=True, exist_ok=True)
    sizes = {"model": work.model, **{name: getattr(work, name) for name in Work._fields[3:]}}
    kept = work.out / "sizes.json"
    if kept.is_file() and json.loads(kept.read_text()) != sizes:
        parser.error(f"{work.out} was begun with {kept.read_text()}; give the same sizes, or another --out")
    kept.write_text(json.dumps(sizes))
    start = values(work, "start", EXT_SUB["start"])
    print(f"{len(start['mc1'])} questions")
    for rows in (EXT_SUB, {"start": EXT_SUB["start"], **OF_SKU}):
        print("\n| | mc1 | mc2 | mc1 - start | mc2 - start |\n| --- | --- | --- | --- | --- |", flush=True)
        for label, make in rows.items():
            found = start if label == "start" else values(work, label, make)
            print(row(label, found, start), flush=True)


if __name__ == "__main__":
    main()
