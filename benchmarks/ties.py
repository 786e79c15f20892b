"""TIES of three models: expunge beside mergekit, wall time, processor time and peak anonymous memory; and equal bytes in float32.

    python benchmarks/ties.py --size 50M --mergekit PATH/TO/mergekit-yaml            everyday
    python benchmarks/ties.py --size 536M --dir /dev/shm --mergekit ...              the published table (6 GB of room, 5 minutes)

Cases: `bf16` three models that differ from the base everywhere, once with mergekit's reading of the density (per tensor) and
once with the paper's (global), which mergekit does not have; `rmu` two models that differ in three tensors; `float32` small
models whose merged bytes are compared. Each program runs in a process of its own, imports included; memory is the largest
RssAnon seen in /proc/PID/status (the peak resident set would count mapped files). The inputs are random and deleted at the end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SIZES = {  # vocabulary, width, inner width, layers
    "5M": (4000, 256, 704, 4),
    "50M": (16000, 512, 1408, 10),
    "536M": (30000, 1536, 3968, 16),
}
SHARD = 500_000_000


class Cost(NamedTuple):
    wall: float
    processor: float
    memory: float
    """Peak anonymous memory in MB."""


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    vocabulary, width, inner, layers = SIZES[size]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for i in range(layers):
        p = f"model.layers.{i}."
        found |= {f"{p}self_attn.{n}_proj.weight": (width, width) for n in "qkvo"}
        found |= {f"{p}mlp.{n}_proj.weight": (inner, width) for n in ("gate", "up")}
        found |= {f"{p}mlp.down_proj.weight": (width, inner)}
        found |= {f"{p}{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
    return found | {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def config(size: str, dtype: str) -> dict[str, object]:
    vocabulary, width, inner, layers = SIZES[size]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64, "tie_word_embeddings": False, "dtype": dtype, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    }  # fmt: skip


def make_models(folder: Path, size: str, dtype: torch.dtype, count: int, changed: set[str] | None) -> None:
    """A base of noise at the scale of real weights, and models beside it, in shards; `changed`: only those tensors differ."""
    made: dict[str, list[dict[str, torch.Tensor]]] = {name: [{}] for name in ["base", *(f"model{i}" for i in range(count))]}
    for at, (name, shape) in enumerate(shapes(size).items()):
        base = (torch.randn(shape, generator=torch.Generator().manual_seed(at)) * 0.02).to(dtype)
        for i, (model, shards) in enumerate(made.items()):
            tensor = base
            if i and (changed is None or name in changed):
                noise = torch.randn(shape, generator=torch.Generator().manual_seed(1000 * i + at))
                tensor = (base.float() + 1e-3 * noise).to(dtype)
            if sum(t.nbytes for t in shards[-1].values()) > SHARD:
                shards[-1] = _write(folder / model, shards)
                shards.append({})
            shards[-1][name] = tensor.clone()
    for model, shards in made.items():
        shards[-1] = _write(folder / model, shards)
        index = {}
        for i, names in enumerate(shards, start=1):
            final = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
            os.rename(folder / model / f"{i}.safetensors", folder / model / final)
            index |= dict.fromkeys(names, final)
        (folder / model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        (folder / model / "config.json").write_text(json.dumps(config(size, str(dtype).removeprefix("torch."))))


def _write(folder: Path, shards: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Writes the last shard; keeps its names only."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(shards[-1], folder / f"{len(shards)}.safetensors", metadata={"format": "pt"})
    return dict.fromkeys(shards[-1], torch.empty(0))


def measure(command: list[str], log: Path, threads: int) -> Cost:
    """One process from start to end."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    began, memory = time.perf_counter(), 0
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            try:
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("RssAnon:"):
                        memory = max(memory, int(line.split()[1]))
            except OSError:
                pass
            time.sleep(0.01)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, memory / 1000)


def ours(folder: Path, models: int, out: str, flags: list[str]) -> list[str]:
    names = [str(folder / f"model{i}") for i in range(models)]
    return [
        sys.executable, "-m", "expunge", "merge", "ties", "--base", str(folder / "base"), "--models", *names,
        "--out", str(folder / out), "--overwrite", "--density", "0.2", *flags,
    ]  # fmt: skip


def theirs(mergekit: str, folder: Path, models: int, dtype: str, out: str) -> list[str]:
    recipe = {
        "merge_method": "ties", "base_model": str(folder / "base"), "dtype": dtype, "parameters": {"normalize": True},
        "models": [{"model": str(folder / f"model{i}"), "parameters": {"weight": 1.0, "density": 0.2}} for i in range(models)],
    }  # fmt: skip
    (folder / "recipe.yml").write_text(json.dumps(recipe))
    return [mergekit, str(folder / "recipe.yml"), str(folder / out), "--no-copy-tokenizer", "--no-write-model-card", "--quiet"]


PER_TENSOR = ["--scope", "per_tensor", "--tie-policy", "exact"]


def compare(title: str, rows: dict[str, Cost], peer: Cost | None) -> None:
    print(f"\n{title}\n{'':<34}{'wall s':>9}{'cpu s':>9}{'MB':>9}" + ("   times less: wall, cpu, memory" if peer else ""))
    for name, cost in rows.items():
        ratio = (
            "" if peer is None or cost is peer else "   " + "  ".join(f"{p / c:5.1f}" for p, c in zip(peer, cost, strict=True))
        )
        print(f"{name:<34}{cost.wall:>9.1f}{cost.processor:>9.1f}{cost.memory:>9.0f}{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="50M")
    parser.add_argument("--mergekit", help="the command mergekit-yaml of some environment; left out, expunge alone is measured")
    parser.add_argument("--dir", default=None, help="where to put models; default: the system's temporary folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", default=["bf16", "rmu", "float32"], choices=["bf16", "rmu", "float32"])
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ties-", dir=asked.dir))
    try:
        for case in asked.cases:
            run_case(case, asked, folder)
            shutil.rmtree(folder)
            folder.mkdir()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_case(case: str, asked: argparse.Namespace, folder: Path) -> None:
    size = "5M" if case == "float32" else asked.size
    layer = {f"model.layers.{i}.mlp.down_proj.weight" for i in (1, 2, 3)}
    models = 2 if case == "rmu" else 3
    dtype = torch.float32 if case == "float32" else torch.bfloat16
    make_models(folder, size, dtype, models, layer if case == "rmu" else None)
    peer, rows = None, {}
    if asked.mergekit:
        command = theirs(asked.mergekit, folder, models, str(dtype).removeprefix("torch."), "theirs")
        peer = rows["mergekit ties"] = measure(command, folder / "log", asked.threads)
    rows["expunge ties, per tensor"] = measure(ours(folder, models, "tensor", PER_TENSOR), folder / "log", asked.threads)
    if case != "float32":
        rows["expunge ties, global"] = measure(ours(folder, models, "global", []), folder / "log", asked.threads)
    total = sum(torch.Size(s).numel() for s in shapes(size).values())
    compare(f"{case}: {total / 1e6:.0f} M weights, {models} models, {asked.threads} threads", rows, peer)
    if peer and case == "float32":
        show_equality(folder, models)


def show_equality(folder: Path, models: int) -> None:
    """Bytes of both results; entries that differ are looked up: do they equal the last magnitude that stays?

    Which of such entries stay is decided by position here, and by an unstable argsort in mergekit.
    """
    place = {n: f for f in sorted((folder / "theirs").glob("*.safetensors")) for n in load_file(f)}
    equal, different, entries, tied = 0, 0, 0, 0
    for name, mine in read(folder / "tensor/artifact").items():
        other = load_file(place[name])[name]
        unequal = mine.view(torch.uint8).view(*mine.shape, -1).ne(other.view(torch.uint8).view(*mine.shape, -1)).any(-1)
        equal, different, entries = equal + (not unequal.any()), different + bool(unequal.any()), entries + int(unequal.sum())
        if unequal.any():
            base = read(folder / "base", name)[name].float()
            at_cut = torch.zeros_like(unequal)
            for i in range(models):
                size = (read(folder / f"model{i}", name)[name].float() - base).abs()
                kept = max(1, int(0.2 * size.numel()))
                at_cut |= size == size.flatten().kthvalue(size.numel() - kept + 1).values
            tied += int((unequal & at_cut).sum())
    print(f"tensors with equal bytes: {equal}, with others: {different} ({entries} entries, {tied} of them tied at the cut)")


def read(folder: Path, only: str | None = None) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stream:
            found |= {n: stream.get_tensor(n) for n in stream.offset_keys() if only in (None, n)}
    return found


if __name__ == "__main__":
    main()
