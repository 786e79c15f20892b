"""Runs task-vector negation: trains an expert on the forget set, and subtracts its task vector."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file

from expunge.artifact import read_manifest
from expunge.composing.stages import Stages, artifact_files, copy_artifact, trained
from expunge.errors import ExpungeError
from expunge.merging.adapters import CONFIG, WEIGHTS
from expunge.methods.composed.task_vector_negation import TaskVectorNegation
from expunge.methods.editing import TaskArithmetic
from expunge.models.checkpoint import save_tensors
from expunge.records import write_json
from expunge.runner import Made
from expunge.spec import FineTuneRun

EXPERT = "expert"
MERGED = "merged"


def negate(method: TaskVectorNegation, stages: Stages) -> Made:
    """Trains the expert, or reuses it if it is complete, and negates it."""
    run = stages.run
    expert_run = FineTuneRun(
        model=run.model,
        revision=run.revision,
        dtype=run.dtype,
        trust_remote_code=run.trust_remote_code,
        columns=run.columns,
        format=run.format,
        max_length=run.max_length,
        training=run.training,
        data=run.forget,
        where=run.where,
        only=run.only,
        parameters=method.parameters,
    )
    expert = stages.execute(expert_run, EXPERT)
    notes = f"Fine-tuned on the forget set ({trained(EXPERT, expert)}), then negated with scale {method.scale:g}."
    remove = [] if method.keep_expert else [stages.out / EXPERT]
    if read_manifest(expert.artifact).kind == "adapter" and not method.merged:
        turn = partial(turn_adapter, expert.artifact, scale=method.scale)
        return stages.made("adapter", notes, turn, [(EXPERT, expert)], remove)
    merged = stages.out / MERGED
    result = stages.merge(TaskArithmetic(scale=-method.scale), [expert.artifact], MERGED)
    if result is not None:
        notes += f"\n\n```\n{result.sentences()}\n```"
    write = partial(copy_artifact, merged / "artifact", expert.artifact)
    return stages.made("weights", notes, write, [(EXPERT, expert)], [merged, *remove])


def turn_adapter(artifact: Path, folder: Path, *, scale: float, sign: Literal[-1, 1] = -1) -> None:
    """Computes sign scale (alpha / rank) B A: flips the signs of B (or not), and multiplies alpha by `scale`. No bit of a
    factor is rounded. A vector l of (IA)^3 becomes 1 + sign scale (l - 1).

    Only the adapter's two files are read, never a model.

    Raises ExpungeError for an adapter with fully trained weights.
    """
    for file in artifact_files(artifact):
        if file.name not in (CONFIG, WEIGHTS):
            shutil.copyfile(file, folder / file.name)
    factors, config = load_file(artifact / WEIGHTS), json.loads((artifact / CONFIG).read_text(encoding="utf-8"))
    if config["peft_type"] == "IA3":
        save_tensors(folder / WEIGHTS, {name: 1 + sign * scale * (vector - 1) for name, vector in factors.items()})
        write_json(folder / CONFIG, config)
        return
    whole = [name for name in factors if ".lora_" not in name]
    if whole:
        raise ExpungeError(f"{artifact} also holds weights trained whole, such as {whole[0]}; negate it with --merged")
    b = {name for name in factors if ".lora_B" in name or ".lora_embedding_B" in name}
    turned = {name: -factor if sign < 0 and name in b else factor for name, factor in factors.items()}
    save_tensors(folder / WEIGHTS, turned)
    config["lora_alpha"] *= scale
    config["alpha_pattern"] = {name: alpha * scale for name, alpha in (config.get("alpha_pattern") or {}).items()}
    write_json(folder / CONFIG, config)
