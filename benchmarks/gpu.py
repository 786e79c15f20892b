"""One GPU in one command: everything agrees with the CPU, and what training, evaluation and guards cost at real shapes.

    python benchmarks/gpu.py --out DIR [--parts agree 1B 8B] [--seconds 480]
    python benchmarks/gpu.py --out DIR --device cpu --shape pico        (a trial without a GPU)

agree    gpu_agree.py twice, with the GPU hidden and not: losses, gradient norms and scores of every training method, LoRA,
         bfloat16, resume, guards, in-place edit, engine, generation; out of memory; how often a step waits. One line each
1B, 8B   gpu_speed.py: tokens a second, MFU and peak memory of each part beside a bare loop

Writes DIR/agree.json, DIR/SHAPE.json and DIR/table.md, the rows for RESULTS.md. Exit code 1 where something does not agree.
Needs torch and transformers; a part that needs a package which is not there (peft, liger-kernel) says so.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TOLERANCE = {"float32": 2e-4, "bfloat16": 2e-2, "decision": 0.0, "expected": 0.0}
"""Greatest |a - b| / max(1, |a|) of an entry. Four steps of Adam turn differences of 1e-7 in a gradient into these."""
PARTS = {
    "pico": ["bare", "npo", "lora", "evaluation", "guards"],
    "1B": ["bare", "npo", "simnpo", "rmu", "lora", "gradient_difference", "npo_float32", "npo_foreach", "npo_own_kernels",
           "lora_own_kernels", "lora_float32", "evaluation", "guards"],
    "8B": ["rmu", "lora", "evaluation"],
}  # fmt: skip

VERDICTS = {True: "agrees", False: "DIFFERS", None: "not run"}


def agree(out: Path, device: str, left: float) -> list[tuple[str, str, bool | None]]:
    """Returns (check, what came out, whether both devices agree; None for a check that has no meaning here)."""
    found: list[tuple[str, str, bool | None]] = []
    files = {name: out / f"agree-{name}.json" for name in ("cpu", device + "-side")}
    jobs = []
    for name, file in files.items():
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if name == "cpu" or device == "cpu" else {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **hidden}
        jobs.append(subprocess.Popen([sys.executable, str(HERE / "gpu_agree.py"), str(file)], env=environment))
    for job in jobs:
        try:
            job.wait(timeout=left)
        except subprocess.TimeoutExpired:
            job.kill()
    one, other = (json.loads(file.read_text()) if file.exists() else {} for file in files.values())
    for name, mine in other.items():
        if name == "device":
            continue
        if isinstance(mine, str):
            skipped = "only a GPU" in mine or "No module named" in mine
            found.append((name, mine, None if skipped else False))
        elif any(kind.startswith("expected") for kind in mine):
            halves = {kind: (v[: len(v) // 2], v[len(v) // 2 :]) for kind, v in mine.items()}
            found += [(f"{name}: {kind}", str(got), got == wanted) for kind, (got, wanted) in halves.items()]
        elif not isinstance(one.get(name), dict):
            found.append((name, f"the CPU has no figure: {one.get(name)}", False))
        else:
            found += [(f"{name}: {kind}", *compared(kind, one[name][kind], values)) for kind, values in mine.items()]
    return found


def compared(kind: str, one: list[float], other: list[float]) -> tuple[str, bool]:
    limit = TOLERANCE[kind.split()[0]]
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} values", False
    apart = max((abs(a - b) / max(1.0, abs(a)) for a, b in zip(one, other, strict=True)), default=0.0)
    return f"{apart:.1e} of {limit:.0e}, {len(one)} values", apart <= limit


def speed(out: Path, shape: str, device: str, left: float) -> dict[str, Any]:
    file = out / f"{shape}.json"
    small = ["--length", "64"] if shape == "pico" else []
    less = ["--rows", "4", "--steps", "6"] if shape == "8B" else []
    words = [sys.executable, str(HERE / "gpu_speed.py"), str(file), "--shape", shape, "--device", device, *small, *less]
    job = subprocess.Popen([*words, "--parts", *PARTS[shape]])
    try:
        job.wait(timeout=max(1.0, left))
    except subprocess.TimeoutExpired:
        job.kill()
        print(f"{shape}: the time was up; the parts so far are kept")
    return json.loads(file.read_text()) if file.exists() else {}


def rows_of_table(date: str, device: str, shape: str, found: dict[str, Any]) -> list[str]:
    bare = found["bare"]["tokens/s"] if isinstance(found.get("bare"), dict) else None
    rows = []
    for part, values in found.items():
        if isinstance(values, str):
            text = f"not run: {values}"
        else:
            shown = {k: v for k, v in values.items() if "loss" not in k and k != "seconds"}
            figures = [f"{v:,.0f} {k}" if v >= 100 else f"{k} {v:.3g}" for k, v in shown.items()]
            if bare and part != "bare" and "tokens/s" in values and "of bare" not in values:
                figures.append(f"{values['tokens/s'] / bare:.2f} of the bare loop")
            text = ", ".join(figures)
        rows.append(f"| {date}, {device} | {part}, {shape} shape | `python benchmarks/gpu.py --parts {shape}` | {text} |")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="*", default=["agree", "1B", "8B"], choices=["agree", "pico", "1B", "8B"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", choices=["pico"], help="pico in place of 1B and 8B")
    parser.add_argument("--seconds", type=float, default=480)
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    began, table, bad = time.monotonic(), [], 0
    parts = flags.parts if flags.shape is None else ["agree", "pico"]
    name = "cpu" if flags.device == "cpu" else _device()
    for part in parts:
        left = flags.seconds - (time.monotonic() - began)
        if part == "agree":
            found = agree(flags.out, flags.device, left)
            for what, said, well in found:
                print(f"{VERDICTS[well]:<8} {what:<75} {said}", flush=True)
            count = {verdict: sum(well is verdict for *_, well in found) for verdict in VERDICTS}
            bad = count[False]
            (flags.out / "agree.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
            date = datetime.date.today().isoformat()
            figures = f"{count[True]} of {count[True] + bad} agree with the CPU" + (
                f", {count[None]} not run" if count[None] else ""
            )
            what = "losses, scores and decisions of pico models"
            table.append(f"| {date}, {name} | {what} | `python benchmarks/gpu.py --parts agree` | {figures} |")
        else:
            table += rows_of_table(datetime.date.today().isoformat(), name, part, speed(flags.out, part, flags.device, left))
        print(f"{part}: {time.monotonic() - began:.0f} s so far", flush=True)
        (flags.out / "table.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    print("\n".join(table))
    return int(bad > 0)


def _device() -> str:
    import torch

    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
