"""Truthfulness of a real instruction-tuned model: SKU and Ext-Sub on HaluEval's answers, scored on TruthfulQA, with intervals.

    python benchmarks/behavior_real.py MODEL DATA --out DIR                    SmolLM2-135M-Instruct: under an hour on two cores
    python benchmarks/behavior_real.py MODEL DATA --out DIR --limit 50 --steps 10     a smaller look

DATA holds halueval/ and truthfulqa/ as published. The expert learns the right answers of HaluEval's questions, the anti-expert
the made-up ones, from one seed; SKU acquires the made-up answers with the right ones as normal prompts. Each row is scored with
the suite truthfulness on given answers (mc1, mc2, mc3), on the same questions.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from expunge import Training, evaluate, load, unlearn
from expunge.evaluation.suites.truthfulness import Truthfulness
from expunge.methods import SKU, ExtSubPipeline
from expunge.records import Score

PARAMETERS = r"\.(q|v)_proj"
METRICS = ("mc1", "mc2", "mc3")


def scored(source: str | Path, data: Path, limit: int | None, out: Path) -> dict[str, Score]:
    model, tokenizer = load(source)
    suite = Truthfulness(tasks=("truthfulqa",), generation=False).build(data)
    found = evaluate(model, tokenizer, suite=suite, limit=limit, out=out, quiet=True)
    return {score.metric: score for score in found.scores if score.metric in METRICS}


def row(label: str, scores: Mapping[str, Score]) -> str:
    cells = [f"{s.value:.3f} ({s.low:.3f} .. {s.high:.3f})" for s in (scores[name] for name in METRICS)]
    return f"| {label} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--limit", type=int, help="the first so many of TruthfulQA's 817 questions")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    right, made_up = (f"{flags.data}:halueval/qa_one_turn/{kind}" for kind in ("right", "hallucinated"))
    training = Training(
        steps=flags.steps, batch_size=flags.batch, learning_rate=5e-4, lora=True, lora_rank=16, lora_alpha=32, max_grad_norm=1.0
    )
    common = {"model": flags.model, "forget": made_up, "retain": right, "training": training, "max_length": 512}
    rows = {"start": scored(flags.model, flags.data, flags.limit, flags.out / "start")}
    print(row("start", rows["start"]), flush=True)
    runs = {
        "Ext-Sub": ("pair", ExtSubPipeline(parameters=PARAMETERS)),
        "plain subtraction": ("pair", ExtSubPipeline(parameters=PARAMETERS, arithmetic="adapter_subtraction")),
        "expert alone": ("pair", ExtSubPipeline(parameters=PARAMETERS, arithmetic="expert")),
        "SKU": ("sku", SKU(parameters=PARAMETERS, cap=1.0)),
        "SKU without disassociation": ("sku_1", SKU(parameters=PARAMETERS, cap=1.0, disassociation_weight=0)),
        "SKU without preservation": ("sku_2", SKU(parameters=PARAMETERS, preservation_weight=0)),
    }
    for label, (folder, method) in runs.items():
        out = flags.out / folder
        unlearn(method, out=out, quiet=True, resume=out.exists(), **common)  # type: ignore[arg-type]
        rows[label] = scored(out, flags.data, flags.limit, flags.out / f"{folder}_{label.replace(' ', '_')}")
        print(row(label, rows[label]), flush=True)
    (flags.out / "table.json").write_text(
        json.dumps({label: {m: s.model_dump(mode="json") for m, s in scores.items()} for label, scores in rows.items()}, indent=1)
    )
    print("\n| | " + " | ".join(METRICS) + " |\n| --- | --- | --- | --- |")
    print("\n".join(row(label, scores) for label, scores in rows.items()))


if __name__ == "__main__":
    main()
