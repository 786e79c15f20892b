"""Turns finished weight files into a folder that loads: adds configuration, tokenizer, card, manifest and reports."""

import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from expunge.artifact import Base, base_of, save_artifact
from expunge.merging.adapters import CONFIG
from expunge.merging.output import Output
from expunge.merging.plan import Plan
from expunge.merging.report import MergeResult, TensorReport
from expunge.models.checkpoint import INDEX
from expunge.models.folder import template_files
from expunge.records import Provenance, write_json, write_text

BESIDE = {".json", ".jinja", ".txt", ".model", ".py", ".tiktoken", ".vocab", ".spm"}
"""Endings of the files beside a model's weights: configuration, tokenizer, code that the configuration names."""
NOT_BESIDE = {INDEX, "pytorch_model.bin.index.json", "expunge.json", "trainer_state.json", CONFIG}
ONLY_MODEL = {"config.json", "generation_config.json"}
REPORT_BYTES = 1000
"""Bytes per tensor in the journal, the report and an index."""


def beside_bytes(plan: Plan) -> int:
    """Estimates the size of a result without its weights: configuration, tokenizer, journal and reports."""
    files = [] if plan.request.write == "delta" else _beside(plan.base.folder)
    return sum(file.stat().st_size for file in files) + REPORT_BYTES * (len(plan.items) + 32)


def write_weights(plan: Plan, output: Output, done: Path, folder: Path) -> None:
    """Writes a complete Hugging Face folder."""
    _copy_beside(plan.base.folder, folder, set())
    if plan.request.dtype != "auto":
        _set_dtype(folder / "config.json", plan.request.dtype)
    _take(output, done, folder)
    if len(output.shards) > 1:
        weight_map = {name: place.file for name, place in plan.places.items()}
        total = sum(shard.nbytes - len(shard.header) for shard in output.shards)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_adapter(plan: Plan, output: Output, done: Path, folder: Path) -> None:
    """Writes PEFT's two files, and the tokenizer."""
    _copy_beside(plan.base.folder, folder, ONLY_MODEL)
    _take(output, done, folder)
    rank = plan.request.rank
    modules = [item.name.removesuffix(".weight") for item in output.items]
    lower = {m: min(item.base.shape) for m, item in zip(modules, output.items, strict=True) if min(item.base.shape) < (rank or 0)}
    config: dict[str, Any] = json.loads((plan.sources[0].folder / CONFIG).read_text(encoding="utf-8"))
    config |= {
        "base_model_name_or_path": str(plan.base.folder),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": lower,
        "alpha_pattern": lower,
        "target_modules": modules,
        "use_rslora": False,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "modules_to_save": None,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    write_json(folder / CONFIG, config)


def write_run(
    plan: Plan,
    output: Output,
    work: Path,
    result: MergeResult,
    rows: Sequence[TensorReport],
    base_sha256: str,
    cost: tuple[float, float, int],
) -> None:
    """Writes the other files of the run folder beside the finished work/weights; the folder then only has to be renamed to
    OUT."""
    done = work / "weights"
    base = base_of(plan.base.folder, Path(result.out), base_sha256)
    names = ", ".join(f"`{Path(label).name}`" for label in plan.request.models)
    notes = f"Merged from {names}.\n\n```\n{result.sentences()}\n```"
    if plan.request.recipe:
        notes += f"\n\nFields may differ between tensors, by this recipe:\n\n```yaml\n{plan.request.recipe}```"
    if plan.request.write == "delta":
        _take(output, done, work)
    else:
        writer: Callable[[Plan, Output, Path, Path], None] = write_weights if plan.request.write == "weights" else write_adapter
        kind = plan.request.write
        save_artifact(
            work / "artifact",
            kind,
            plan.request.method,
            base,
            lambda to: writer(plan, output, done, to),
            notes=notes,
            then="go on with --resume, which computes no tensor again",
        )
    write_text(work / "tensors.jsonl", "".join(row.model_dump_json() + "\n" for row in rows))
    write_json(work / "merge.json", result)
    write_json(work / "provenance.json", _provenance(plan, base, cost))
    shutil.rmtree(done)


def _take(output: Output, done: Path, folder: Path) -> None:
    """Makes a hard link to each finished file, so that a kill loses none; moves them if links are not possible."""
    for shard in output.shards:
        (folder / shard.file).unlink(missing_ok=True)
        try:
            os.link(done / shard.file, folder / shard.file)
        except OSError:
            os.replace(done / shard.file, folder / shard.file)


def _copy_beside(base: Path, folder: Path, without: set[str]) -> None:
    for file in _beside(base):
        if file.name not in without:
            target = folder / file.relative_to(base)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def _beside(base: Path) -> list[Path]:
    named = [f for f in sorted(base.iterdir()) if f.suffix in BESIDE or f.name.startswith(("LICENSE", "NOTICE"))]
    return [file for file in named if file.is_file() and file.name not in NOT_BESIDE] + template_files(base)


def _set_dtype(file: Path, dtype: str) -> None:
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    write_json(file, config | {"dtype": dtype})


def _provenance(plan: Plan, base: Base, cost: tuple[float, float, int]) -> Provenance:
    from importlib.metadata import version

    from expunge import __version__

    wall, processor, memory = cost
    return Provenance(
        expunge=__version__,
        base=base.path,
        base_sha256=base.sha256,
        data={},
        counts={},
        seed=int(plan.request.method.model_dump().get("seed", 0)),
        versions={"python": platform.python_version()} | {n: version(n) for n in ("torch", "numpy", "safetensors")},
        host=f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        threads=torch.get_num_threads(),
        processes=1,
        wall_seconds=round(wall, 3),
        device_seconds=round(processor, 3),
        peak_memory_bytes=memory,
    )
