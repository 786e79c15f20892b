"""What a cached reference costs: a step of NPO against a step of gradient difference, in CPU time, in one run, and in memory.

    python benchmarks/training.py [--steps N]

A random Llama (width 256, 4 layers, 2,000 words), 16 + 16 rows of 64 tokens, one thread. The two methods take turns, so that
whatever else the machine does falls on both. The naive reading of NPO, kept here as the baseline, holds a frozen copy of the
model and runs it in every step.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.data.encode import Encoded, collate
from expunge.memory import PeakMemory, anonymous_bytes
from expunge.methods import NPO, Batch, GradientDifference
from expunge.models.logprobs import labelled_logits, sequence_sum, token_logprobs

torch.set_num_threads(1)

DIFFERENCE, CACHED, NAIVE = "gradient_difference", "npo, cached reference", "npo, a second model"


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4
    )
    return LlamaForCausalLM(config)


def rows(seed: int) -> list[Encoded]:
    ids = torch.randint(3, 2000, (16, 64), generator=torch.Generator().manual_seed(seed)).tolist()
    return [Encoded(tuple(row), 24, False) for row in ids]


def logprob(net: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        labelled = labelled_logits(net, batch.forget)
        return sequence_sum(token_logprobs(labelled), labelled.row_N, labelled.rows)


def losses(names: list[str]) -> tuple[nn.Module, dict[str, Callable[[], torch.Tensor]]]:
    """The model and the named losses on one batch; a second model is made only where the naive reading is among them."""
    net = model()
    batch = Batch({"forget": collate(rows(1), 0), "retain": collate(rows(2), 0)})
    batch.forget.frozen["logprob"] = logprob(net, batch)
    frozen = copy.deepcopy(net) if NAIVE in names else None

    def naive() -> torch.Tensor:
        assert frozen is not None
        batch.forget.frozen["logprob"] = logprob(frozen, batch)
        return NPO().loss(net, batch).total

    known = {
        DIFFERENCE: lambda: GradientDifference().loss(net, batch).total,
        CACHED: lambda: NPO().loss(net, batch).total,
        NAIVE: naive,
    }
    return net, {name: known[name] for name in names}


def step(net: nn.Module, loss: Callable[[], torch.Tensor]) -> float:
    began = time.process_time()
    net.zero_grad(set_to_none=True)
    loss().backward()
    return time.process_time() - began


def peak(name: str) -> float:
    """Peak anonymous memory of a fresh process that takes three steps, in MiB."""
    words = [sys.executable, __file__, "--peak", name]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.peak:
        before = anonymous_bytes()
        net, one = losses([flags.peak])
        memory = PeakMemory()
        for _ in range(3):
            step(net, one[flags.peak])
            memory.sample()
        print((memory.peak - before) / 2**20)
        return
    net, kinds = losses([DIFFERENCE, CACHED, NAIVE])
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(flags.steps + 2):
        for name, loss in kinds.items():
            seconds = step(net, loss)
            if turn >= 2:
                times[name].append(seconds)
    base = statistics.median(times[DIFFERENCE])
    weights = sum(p.numel() for p in net.parameters()) * 4 / 2**20
    print(f"{'':<24}{'CPU ms a step':>16}{'ratio':>8}{'after a step, MiB':>20}   (the weights alone: {weights:.0f} MiB)")
    for name, values in times.items():
        print(f"{name:<24}{1000 * statistics.median(values):>16.1f}{statistics.median(values) / base:>8.3f}{peak(name):>20.0f}")


if __name__ == "__main__":
    main()
