"""What the teacher-forced metrics of the tofu suite cost beside one bare forward over the same unique sequences.

    EXPUNGE_DATA=... python benchmarks/evaluation.py [--limit N] [--repeats N]

CPU time of one thread, medians of interleaved repeats. `bare` is `model(input_ids, attention_mask)` on ready-made batches of like
length: no tokenization, no metric, nothing kept. `all metrics` is a whole `evaluate` call without ROUGE (which generates):
reading, tokenization, one pass, probability, truth ratio, extraction strength, exact memorization, intervals, forget
quality, model utility. Goal: at most 1.3 times bare.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from transformers import PreTrainedModel

from expunge.data.encode import Encoded, Encoder, Tokens, collate, length_batches
from expunge.data.format import default_format
from expunge.evaluation.engine import Engine
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites import Tofu
from expunge.evaluation.task import Suite
from expunge.models.load import load_model, load_tokenizer
from expunge.models.logprobs import labelled_logits


def teacher_forced(suite: Suite) -> Suite:
    """The suite without the metrics that generate."""
    keep = [replace(task, metrics=tuple(m for m in task.metrics if "generated" not in m.needs)) for task in suite.tasks]
    return replace(suite, tasks=tuple(keep), summarize=lambda results: [])


def unique_sequences(suite: Suite, encoder: Encoder) -> list[Encoded]:
    texts = [
        (e.prompt, text) for task in suite.tasks for e in task.examples for text in (e.response, *e.paraphrases, *e.perturbed)
    ]
    return list({row.ids: row for row in encoder.encode_answers(texts)}.values())


@torch.inference_mode()
def bare(model: PreTrainedModel, batches: list[Tokens]) -> None:
    for batch in batches:
        model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)


@torch.inference_mode()
def bare_at_answers(model: PreTrainedModel, batches: list[Tokens]) -> None:
    for batch in batches:
        labelled_logits(model, batch)


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=100, help="examples per task")
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(os.environ["EXPUNGE_DATA"])
    model = load_model(str(data / "stories260k"), dtype="float32", device="cpu")
    tokenizer = load_tokenizer(str(data / "stories260k"))
    suite = teacher_forced(Tofu().build(data / "tofu"))
    suite = replace(suite, tasks=tuple(replace(task, examples=task.examples[: flags.limit]) for task in suite.tasks))
    encoder = Encoder(tokenizer, default_format(tokenizer), max_length=512)
    rows = unique_sequences(suite, encoder)
    engine = Engine(model, encoder.pad_id)
    order = length_batches([len(row.ids) for row in rows], engine.max_tokens, engine.max_rows)
    batches = [collate([rows[i] for i in batch], encoder.pad_id) for batch in order]

    works: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(model, batches),
        "bare, logits at answers only": lambda: bare_at_answers(model, batches),
        "all metrics": lambda: evaluate(model, tokenizer, suite=suite, quiet=True),
    }
    bare(model, batches[:2])
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(flags.repeats):
        for name, work in works.items():
            times[name].append(cpu_seconds(work))
    tokens = sum(len(row.ids) for row in rows)
    padded = sum(batch.input_ids_BT.numel() for batch in batches)
    print(f"{len(rows)} unique sequences, {tokens} tokens, {padded} with padding, {len(batches)} batches\n")
    print(f"{'':<30} {'CPU s':>8} {'ratio':>7}")
    base = statistics.median(times["bare"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:<30} {median:>8.2f} {median / base:>7.2f}")


if __name__ == "__main__":
    main()
