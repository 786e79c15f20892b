"""Runs SKU: trains a harmful model and subtracts what it learned, at one scale or several.

run/  acquisition/    run.yaml, metrics.jsonl, provenance.json, and artifact/, the harmful model, while it is needed
      scales/SCALE/   artifact/ of each, if several scales were given
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from expunge.artifact import artifact_folder, read_manifest
from expunge.composing.negation import MERGED, turn_adapter
from expunge.composing.scales import write_scales
from expunge.composing.stages import Stages, copy_artifact, trained
from expunge.errors import ExpungeError
from expunge.methods.composed.sku import SKU, as_fields
from expunge.methods.editing import TaskArithmetic
from expunge.processes import is_main
from expunge.records import write_text
from expunge.runner import Made, Outcome
from expunge.spec import AcquisitionRun, to_yaml
from expunge.training.defaults import resolve
from expunge.training.settings import Training

ACQUIRED = "acquisition"
WARNING = (
    "# A harmful model\n\nThe model in `artifact/` was trained to show the behavior that is to be removed, so that it can be "
    "subtracted (SKU). Do not serve or publish it. It was kept by --keep-harmful; nothing needs it, and it may be deleted.\n"
)


class Vector(NamedTuple):
    """The task vector tau as an artifact on disk: theta_artifact = theta_0 + factor tau."""

    artifact: Path
    factor: float
    outcome: Outcome


def check_training(method: SKU, training: Training) -> None:
    """Raises ExpungeError for settings with which the loss on the result cannot be computed."""
    if not method.result_weight:
        return
    if training.gradient_checkpointing:
        raise ExpungeError(
            "--result-weight runs passes at the weights after the subtraction, and --gradient-checkpointing would repeat them at "
            "others; leave out one of the two (--micro-batch-size saves memory as well)"
        )
    if training.shard != "none":
        raise ExpungeError(
            f"--result-weight needs whole weights in every process, and --shard {training.shard} splits them; leave one out"
        )


def acquire_and_negate(method: SKU, stages: Stages) -> Made:
    """Trains the harmful model, or reuses an earlier result of it, and negates it at every scale."""
    vector = _vector(method, stages)
    acquired = vector.outcome
    kind = "adapter" if read_manifest(vector.artifact).kind == "adapter" and not method.merged else "weights"
    write_scales(
        stages,
        "adapter" if kind == "adapter" else "weights",
        [
            (s, method.model_copy(update={"scale": (s,)}), partial(_negated, method, stages, vector, kind, s))
            for s in method.scale
        ],
    )
    notes = f"Learned what is to go ({trained(ACQUIRED, acquired)}), then negated with scale {method.scale[0]:g}."
    harmful = stages.out / ACQUIRED
    remove = [stages.out / MERGED]
    if method.keep_harmful and is_main() and vector.artifact.parent == harmful:
        write_text(harmful / "README.md", WARNING)
    elif not method.keep_harmful:
        remove.append(harmful / "artifact")
    write = partial(_negated, method, stages, vector, kind, method.scale[0])
    return stages.made("adapter" if kind == "adapter" else "weights", notes, write, [(ACQUIRED, acquired)], remove)


def _vector(method: SKU, stages: Stages) -> Vector:
    """Returns the vector, from the artifact of an earlier scale if the harmful model is deleted and only the scale has
    changed."""
    run = stages.run
    shared = {name: getattr(run, name) for name in AcquisitionRun.model_fields if name != "acquisition"}
    stage, _ = resolve(AcquisitionRun(**shared, acquisition=method.acquisition()), stages.request, stages.context.start)
    folder = stages.out / ACQUIRED
    earlier = _earlier(method, stages, stage)
    if stages.context.resume and earlier is not None and artifact_folder(folder) is None:
        return Vector(earlier, -_scale_of(earlier), Outcome(folder, earlier, 0, None))
    outcome = stages.execute(stage, ACQUIRED)
    return Vector(outcome.artifact, 1.0, outcome)


def _earlier(method: SKU, stages: Stages, stage: AcquisitionRun) -> Path | None:
    """Returns the run's artifact, if it was made by the same acquisition."""
    begun, artifact = stages.out / ACQUIRED / "run.yaml", stages.out / "artifact"
    if not (begun.is_file() and (stages.out / ACQUIRED / "provenance.json").is_file() and (artifact / "expunge.json").is_file()):
        return None
    before = read_manifest(artifact)
    same = as_fields(before.method) == as_fields(method.model_dump(mode="json"))
    whole = before.kind == "weights" and not method.merged and stages.run.training.lora
    return artifact if same and not whole and begun.read_text(encoding="utf-8") == to_yaml(stage) else None


def _scale_of(artifact: Path) -> float:
    return float(read_manifest(artifact).method["scale"][0])


def _negated(method: SKU, stages: Stages, vector: Vector, kind: str, scale: float, folder: Path) -> None:
    """Writes theta_0 - scale tau into `folder`."""
    factor = -scale / vector.factor
    if kind == "adapter":
        scale_adapter(vector.artifact, folder, factor)
        return
    merged = stages.out / MERGED
    stages.merge(TaskArithmetic(scale=factor), [vector.artifact], MERGED)
    copy_artifact(merged / "artifact", vector.artifact, folder)


def scale_adapter(artifact: Path, folder: Path, factor: float) -> None:
    """Computes factor (alpha / rank) B A: the sign is in B, the size in alpha. No bit of a factor is rounded."""
    if factor < 0:
        turn_adapter(artifact, folder, scale=-factor)
        return
    turn_adapter(artifact, folder, scale=factor, sign=1)
