"""One step of RMU: expunge against the reading of the release, on the same batches, one thread, each in a process of its own.

    python benchmarks/rmu.py

The reading (as the release does it, its engine written out below): two models; three passes through all layers with logits; only
the three matrices are in the optimizer, but nothing is frozen, so gradients of everything below layer 7 are computed and kept.
Printed: CPU time of a step (median), peak anonymous memory, and the largest differences of losses and gradients over all steps.
Model: random Llama, width 256, 32 layers, 8,192 words, float32; 4 forget and 4 retain texts of 256 tokens, without pads.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.data.encode import Tokens
from expunge.memory import anonymous_bytes
from expunge.methods import RMU, Batch

LAYER, EDITED, ALPHA, C, RATE = 7, (5, 6, 7), 1200.0, 6.5, 5e-5
ROWS, LENGTH, WORDS = 4, 256, 8192
BARS = {"CPU time": 4.0, "memory": 2.5}

Step = Callable[[Tensor, Tensor], float]
"""(forget ids, retain ids) -> loss, after the optimizer's step; gradients stay."""


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=256, intermediate_size=688, num_hidden_layers=32, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=512, dtype="float32",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def edited(model: LlamaForCausalLM) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if name in {f"model.layers.{i}.mlp.down_proj.weight" for i in EDITED}}


def control(width: int) -> Tensor:
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(42))
    return C * drawn / drawn.norm()


def release(model: LlamaForCausalLM) -> Step:
    frozen = make_model()
    trained = edited(model)
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, eps=1e-6, weight_decay=0.0)
    goal = control(256).view(1, 1, -1)

    def states(network: LlamaForCausalLM, ids: Tensor, gradient: bool) -> Tensor:
        cache: list[Tensor] = []
        handle = network.model.layers[LAYER].register_forward_hook(lambda m, i, o: cache.append(o))
        with torch.set_grad_enabled(gradient):
            network(input_ids=ids, attention_mask=torch.ones_like(ids))
        handle.remove()
        return cache[0]

    def step(forget: Tensor, retain: Tensor) -> float:
        for p in trained.values():
            p.grad = None
        now = states(model, forget, True)
        loss = torch.nn.functional.mse_loss(now, goal.expand_as(now))
        loss = loss + ALPHA * torch.nn.functional.mse_loss(states(model, retain, True), states(frozen, retain, False))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def ours(model: LlamaForCausalLM) -> Step:
    method = RMU(layer=LAYER, alpha=ALPHA, coefficient=C)
    trained = edited(model)
    assert set(trained) == method.candidates(model)
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
    start = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, eps=1e-6, weight_decay=0.0)

    def tokens(ids: Tensor) -> Tokens:
        return Tokens(ids, torch.ones_like(ids), torch.full_like(ids, -100))

    def step(forget: Tensor, retain: Tensor) -> float:
        optimizer.zero_grad()
        loss = method.loss(model, Batch({"forget": tokens(forget), "retain": tokens(retain)}, start_weights=start))
        loss.total.backward()
        optimizer.step()
        return float(loss.total.detach())

    return step


def measure(which: str, steps: int, out: Path) -> None:
    """Runs in a process of its own: losses, CPU seconds a step, peak memory, and gradients of the first and the last step."""
    torch.set_num_threads(1)
    imports = anonymous_bytes()
    peak, done = [imports], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_bytes())

    threading.Thread(target=watch, daemon=True).start()
    model = make_model()
    step = {"release": release, "expunge": ours}[which](model)
    generator = torch.Generator().manual_seed(1)
    seconds, losses, gradients = [], [], {}
    for i in range(steps):
        forget, retain = (torch.randint(0, WORDS, (ROWS, LENGTH), generator=generator) for _ in range(2))
        began = time.process_time()
        losses.append(step(forget, retain))
        seconds.append(time.process_time() - began)
        if i in (0, steps - 1):
            gradients |= {f"{i} {name}": p.grad.clone() for name, p in edited(model).items() if p.grad is not None}
    done.set()
    save_file(gradients, out / f"{which}.safetensors")
    result = {"losses": losses, "seconds": statistics.median(seconds[1:]), "memory": peak[0], "imports": imports}
    (out / f"{which}.json").write_text(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--measure", choices=["release", "expunge"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        measure(flags.measure, flags.steps, flags.out)
        return
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        for which in ("release", "expunge"):
            command = [sys.executable, __file__, "--measure", which, "--steps", str(flags.steps), "--out", name]
            subprocess.run(command, check=True)
        one, other = (json.loads((out / f"{which}.json").read_text()) for which in ("release", "expunge"))
        first, second = (load_file(out / f"{which}.safetensors") for which in ("release", "expunge"))
    ratios = {"CPU time": one["seconds"] / other["seconds"], "memory": one["memory"] / other["memory"]}
    print(f"{'':<10}{'release':>12}{'expunge':>12}{'ratio':>8}{'bar':>6}")
    print(f"{'CPU time':<10}{one['seconds']:>10.3f} s{other['seconds']:>10.3f} s{ratios['CPU time']:>8.2f}{BARS['CPU time']:>6}")
    sizes = "".join(f"{result['memory'] / 2**20:>8.0f} MiB" for result in (one, other))
    print(f"{'memory':<10}{sizes}{ratios['memory']:>8.2f}{BARS['memory']:>6}   ({other['imports'] / 2**20:.0f} MiB imports)")
    apart = max(abs(a / b - 1) for a, b in zip(one["losses"], other["losses"], strict=True))
    worst = max(float((first[n] - second[n]).norm() / first[n].norm()) for n in first)
    losses = f"from {one['losses'][0]:.6f} to {one['losses'][-1]:.6f}"
    print(f"losses of {flags.steps} steps ({losses}): largest relative difference {apart:.1e}")
    print(f"gradients of the three matrices, first and last step: largest relative difference {worst:.1e}")
    if any(ratios[name] < bar for name, bar in BARS.items()) or apart > 1e-5 or worst > 1e-4:
        sys.exit("below the bar")


if __name__ == "__main__":
    main()
