"""All teacher-forced metrics of TOFU from one pass, beside each metric with passes of its own.

    EXPUNGE_DATA=... python benchmarks/metrics.py [--limit N] [--repeats N] [--width D] [--vocabulary V]

CPU time of one thread, medians of interleaved repeats, a small Llama with random weights and the tokenizer of stories260k.
Metrics: probability, truth ratio, extraction strength, exact memorization on the four tasks of TOFU, and mia_loss, mia_zlib,
mia_min_k, mia_min_k_plus_plus of forget against retain questions (holdout10 is not in the data folder; the cost is the same).

`naive` is the reading that the common frameworks have: for each metric its own data set, tokenized again, in file order, batches
of `--batch` rows padded to their longest, log-softmax of all positions. `one pass` is a whole `evaluate` call, intervals
included. Goal: at least 3 times less CPU time, and the same scores to 1e-6.
"""

import argparse
import os
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from expunge.data.encode import Encoder, collate
from expunge.data.example import Example
from expunge.data.format import default_format
from expunge.evaluation.metrics import (
    ExactMemorization,
    ExtractionStrength,
    MiaLoss,
    MiaMinK,
    MiaMinKPlusPlus,
    MiaZlib,
    Probability,
    TruthRatio,
)
from expunge.evaluation.run import evaluate
from expunge.evaluation.statistics import auc
from expunge.evaluation.suites import Tofu
from expunge.evaluation.suites.attacked import TaskPair, attack_scores
from expunge.evaluation.task import Suite
from expunge.models.load import load_tokenizer

ATTACKS = (MiaLoss(), MiaZlib(), MiaMinK(), MiaMinKPlusPlus())
NAMES = [attack.metric_name() for attack in ATTACKS]
SETS = TaskPair("forget", "retain")
Scores = dict[tuple[str, str], float]


def suite_of(data: Path, limit: int) -> Suite:
    """TOFU's tasks without the metrics that generate, with the attacks on two of them."""
    tasks = []
    for task in Tofu().build(data).tasks:
        metrics = tuple(metric for metric in task.metrics if "generated" not in metric.needs)
        attacks = ATTACKS if task.name in SETS else ()
        tasks.append(replace(task, examples=task.examples[:limit], metrics=(*metrics, *attacks)))

    return Suite(
        "tofu", tuple(tasks), lambda r: attack_scores(r, SETS, NAMES, retain=None, reference=None, advice="")[: len(NAMES)]
    )


class Naive:
    """Each metric for itself."""

    def __init__(self, model: PreTrainedModel, encoder: Encoder, batch: int) -> None:
        self.model, self.encoder, self.batch = model, encoder, batch

    def scores(self, suite: Suite) -> Scores:
        found: Scores = {}
        for task in suite.tasks:
            answers = [(e.prompt, e.response) for e in task.examples]
            for metric in task.metrics:
                match metric:
                    case Probability(among_perturbed=False):
                        values = np.exp(self.means(answers))
                    case Probability():
                        values = self.among(task.examples)
                    case TruthRatio():
                        values = metric.reported(self.ratios(task.examples), task.role)
                    case ExtractionStrength() | ExactMemorization():
                        exact = isinstance(metric, ExactMemorization)
                        values = np.array([hit.mean() if exact else _strength(hit) for hit in self.hits(answers)])
                    case _:
                        continue
                found[task.name, metric.metric_name()] = float(np.mean(values))
        tasks = {task.name: task for task in suite.tasks}
        for name in NAMES:
            sides = [self.attack(name, [(e.prompt, e.response) for e in tasks[task].examples]) for task in SETS]
            found["suite", name] = auc(*sides)
        return found

    def passes(
        self, pairs: Sequence[tuple[str | None, str]], read: Callable[[torch.Tensor, torch.Tensor], np.ndarray]
    ) -> list[np.ndarray]:
        """`read` of the log-softmax at all positions and the labels, for each pair."""
        rows = self.encoder.encode_answers(list(pairs))
        out = []
        for start in range(0, len(rows), self.batch):
            tokens = collate(rows[start : start + self.batch], self.encoder.pad_id)
            with torch.inference_mode():
                logits = self.model(input_ids=tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT).logits
                logp_BTV = logits[:, :-1].log_softmax(dim=-1)
            for logp_TV, labels_T in zip(logp_BTV, tokens.labels_BT[:, 1:], strict=True):
                out.append(read(logp_TV[labels_T != -100], labels_T[labels_T != -100]))
        return out

    def logps(self, pairs: Sequence[tuple[str | None, str]]) -> list[np.ndarray]:
        return self.passes(pairs, lambda logp_NV, labels_N: logp_NV.gather(1, labels_N[:, None])[:, 0].numpy())

    def hits(self, pairs: Sequence[tuple[str | None, str]]) -> list[np.ndarray]:
        return [hit[:-1] for hit in self.passes(pairs, lambda logp_NV, labels_N: (logp_NV.argmax(1) == labels_N).numpy())]

    def means(self, pairs: Sequence[tuple[str | None, str]]) -> np.ndarray:
        return np.array([logp.mean(dtype=np.float64) for logp in self.logps(pairs)])

    def wrong(self, examples: Sequence[Example]) -> list[np.ndarray]:
        means = self.means([(e.prompt, text) for e in examples for text in e.perturbed])
        return np.split(means, np.cumsum([len(e.perturbed) for e in examples])[:-1])

    def among(self, examples: Sequence[Example]) -> np.ndarray:
        right = np.exp(self.means([(e.prompt, e.response) for e in examples]))
        return np.array([p / (p + np.exp(w).sum()) for p, w in zip(right, self.wrong(examples), strict=True)])

    def ratios(self, examples: Sequence[Example]) -> np.ndarray:
        right = np.exp(self.means([(e.prompt, (e.paraphrases or (e.response,))[0]) for e in examples]))
        return np.array([np.exp(w).mean() / p for p, w in zip(right, self.wrong(examples), strict=True)])

    def attack(self, name: str, pairs: Sequence[tuple[str | None, str]]) -> np.ndarray:
        if name == "mia_min_k_plus_plus":
            return np.array([_lowest(values) for values in self.passes(pairs, _standardized)])
        if name == "mia_min_k":
            return np.array([_lowest(logp) for logp in self.logps(pairs)])
        means = self.means(pairs)
        return means if name == "mia_loss" else means / np.array([len(zlib.compress(text.encode())) for _, text in pairs])


def _standardized(logp_NV: torch.Tensor, labels_N: torch.Tensor) -> np.ndarray:
    p_NV = logp_NV.exp()
    mean_N = (p_NV * logp_NV).sum(1)
    variance_N = (p_NV * (logp_NV - mean_N[:, None]).square()).sum(1).clamp(min=1e-6)
    return ((logp_NV.gather(1, labels_N[:, None])[:, 0] - mean_N) / variance_N.sqrt()).numpy()


def _lowest(values: np.ndarray) -> float:
    return float(np.sort(values)[: max(1, int(0.4 * len(values)))].mean(dtype=np.float64))


def _strength(hit: np.ndarray) -> float:
    n = len(hit)
    return 1 - next(k for k in range(n + 1) if hit[k:].all()) / n


def cpu_seconds(work: Callable[[], Scores]) -> tuple[float, Scores]:
    start = time.process_time()
    scores = work()
    return time.process_time() - start, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=40, help="examples per task")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="rows of a naive batch")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=4096)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(os.environ["EXPUNGE_DATA"])
    tokenizer = load_tokenizer(str(data / "stories260k"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=flags.vocabulary, hidden_size=flags.width, intermediate_size=3 * flags.width, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, initializer_range=0.1, dtype="float32",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    encoder = Encoder(tokenizer, default_format(tokenizer), max_length=1024)
    suite = suite_of(data / "tofu", flags.limit)
    naive = Naive(model, encoder, flags.batch)

    def one_pass() -> Scores:
        scores = evaluate(model, tokenizer, suite=suite, quiet=True).scores
        return {(s.task, s.metric): s.value for s in scores if s.value is not None}

    works: dict[str, Callable[[], Scores]] = {"naive": lambda: naive.scores(suite), "one pass": one_pass}
    times: dict[str, list[float]] = {name: [] for name in works}
    results: dict[str, Scores] = {}
    for _ in range(flags.repeats):
        for name, work in works.items():
            seconds, results[name] = cpu_seconds(work)
            times[name].append(seconds)
    keys = results["naive"].keys()
    assert keys == results["one pass"].keys(), keys ^ results["one pass"].keys()
    worst = max(abs(results["naive"][key] - results["one pass"][key]) for key in keys)
    print(f"{len(keys)} scores, greatest difference {worst:.1e}\n")
    print(f"{'':<12} {'CPU s':>8} {'ratio':>7}")
    base = statistics.median(times["one pass"])
    for name, seconds_each in times.items():
        median = statistics.median(seconds_each)
        print(f"{name:<12} {median:>8.2f} {median / base:>7.2f}")


if __name__ == "__main__":
    main()
