"""Ext-Sub over two adapters of rank 16 at the shapes of LLaMA-7B: processor time, peak memory, size of the result, and how far it
is from the formula written out on whole matrices.

    python benchmarks/ext_sub.py                    everything, half a minute
    python benchmarks/ext_sub.py --literal          also the whole formula as a process of its own: 17 GB of memory, 9 GB of disk

The adapters are random (32 layers, q and v, 4096 x 4096), the base is neither needed nor there. The command runs in a
process of its own, imports included, from byte code that an earlier start has written; memory is the largest resident set
that the kernel reports of it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

LAYERS, WIDTH, RANK, ALPHA = 32, 4096, 16, 32
IMPORTS = "import expunge.cli.flags, expunge.methods.editing, expunge.merging.factor_merge"
"""What `expunge merge ext_sub` imports."""


def write_adapter(folder: Path, seed: int, layers: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for module in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, WIDTH, generator=generator) / WIDTH**0.5
            tensors[f"{name}.lora_B.weight"] = 0.01 * torch.randn(WIDTH, RANK, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "huggyllama/llama-7b",
        "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj", "v_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def literal(plus_OI: Tensor, minus_OI: Tensor, alpha: float) -> Tensor:
    """The formula as the paper has it."""
    p, q = plus_OI / plus_OI.norm(dim=1, keepdim=True), minus_OI / minus_OI.norm(dim=1, keepdim=True)
    f = (p + q) / (p + q).norm(dim=1, keepdim=True)
    return plus_OI - alpha * minus_OI + alpha * (minus_OI * f).sum(1, keepdim=True) * f


def products(folder: Path, scaling: float) -> dict[str, Tensor]:
    """Module -> the first of its factors, lazily: (B, A) of the first two modules."""
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        modules = sorted(k.removesuffix(".lora_A.weight") for k in file.keys() if k.endswith("lora_A.weight"))[:2]  # noqa: SIM118
        return {
            m: scaling * file.get_tensor(f"{m}.lora_B.weight").double() @ file.get_tensor(f"{m}.lora_A.weight").double()
            for m in modules
        }


def whole_formula(expert: Path, anti: Path, out: Path) -> None:
    """What the released script computes: every weight, with an identity as the other factor."""
    plus, minus = load_file(expert / "adapter_model.safetensors"), load_file(anti / "adapter_model.safetensors")
    made = {}
    for key in (k.removesuffix(".lora_A.weight") for k in plus if k.endswith("lora_A.weight")):
        w, v = (t[f"{key}.lora_B.weight"] @ t[f"{key}.lora_A.weight"] for t in (plus, minus))
        made |= {f"{key}.lora_B.weight": literal(w, v, 1.0), f"{key}.lora_A.weight": torch.eye(WIDTH)}
    save_file(made, out)


def measured(words: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """(wall seconds, processor seconds, MB) of a process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, env=environment, check=True, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, after.ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--literal", action="store_true")
    parser.add_argument("--dir", type=Path, help="where the files lie; default: a temporary folder")
    flags = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else every start compiles all of it again
    measured([sys.executable, "-c", IMPORTS], environment)
    with tempfile.TemporaryDirectory(dir=flags.dir) as where:
        folder = Path(where)
        expert, anti = write_adapter(folder / "e", 1, flags.layers), write_adapter(folder / "a", 2, flags.layers)
        command = [sys.executable, "-m", "expunge", "merge", "ext_sub", "--models", str(expert), str(anti)]
        wall, processor, memory = measured([*command, "--out", str(folder / "out")], environment)
        _, imports, _ = measured([sys.executable, "-c", IMPORTS], environment)
        _, torch_alone, _ = measured([sys.executable, "-c", "import torch"], environment)
        print("| | wall s | processor s | wall s without imports | peak MB | result MB |\n| --- | --- | --- | --- | --- | --- |")
        print(f"| imports of the command alone | | {imports:.2f} | | | |")
        print(f"| `import torch`, which it does not do | | {torch_alone:.2f} | | | |")
        result = folder / "out/artifact/adapter_model.safetensors"
        core = json.loads((folder / "out/merge.json").read_text())["seconds"]
        print(f"| ext_sub | {wall:.2f} | {processor:.2f} | {core:.2f} | {memory:.0f} | {result.stat().st_size / 1e6:.1f} |")
        plus, minus, found = (products(f, s) for f, s in ((expert, ALPHA / RANK), (anti, ALPHA / RANK), (result.parent, 1.0)))
        far = max(float((found[m] - (e := literal(plus[m], minus[m], 1.0))).norm() / e.norm()) for m in plus)
        print(f"distance from the literal formula in float64, relative: {far:.1e}")
        if flags.literal:
            code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import ext_sub; from pathlib import Path; "
            code += f"ext_sub.whole_formula(Path({str(expert)!r}), Path({str(anti)!r}), Path({str(folder / 'w.safetensors')!r}))"
            wall, processor, memory = measured([sys.executable, "-c", code], environment)
            size = (folder / "w.safetensors").stat().st_size / 1e6
            print(f"| every weight | {wall:.2f} | {processor:.2f} | | {memory:.0f} | {size:.1f} |")


if __name__ == "__main__":
    main()
