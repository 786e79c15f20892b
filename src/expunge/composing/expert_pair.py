"""Runs Ext-Sub from data: trains an expert and an anti-expert, and combines both adapters.

run/  expert/  anti_expert/   one fine-tuning run each, with its adapter while it is kept
      scales/ALPHA/           artifact/ of each, if several were given
"""

import shutil
from functools import partial
from pathlib import Path

from expunge.composing.negation import MERGED
from expunge.composing.scales import write_scales
from expunge.composing.stages import Stages, copy_artifact, trained
from expunge.merging import AdapterResult, merge_adapters
from expunge.methods.composed.ext_sub_pipeline import ExtSubPipeline
from expunge.methods.editing import AdapterSubtraction, ExtSub, TaskArithmetic
from expunge.processes import is_main
from expunge.runner import Made
from expunge.spec import FineTuneRun, Sources

EXPERT, ANTI = "expert", "anti_expert"
COMBINED = "combined"
OWN = ("data", "parameters", "where", "only", "training")
"""Fields that a stage does not take from the run unchanged."""


def subtract_anti_expert(method: ExtSubPipeline, stages: Stages) -> Made:
    """Trains both adapters, or reuses them if they are complete, and combines their files."""
    run = stages.run
    expert = stages.execute(_stage(method, stages, run.retain), EXPERT)
    anti = stages.execute(_stage(method, stages, run.forget).model_copy(update={"where": run.where, "only": run.only}), ANTI)
    pair = (expert.artifact, anti.artifact)
    notes = f"Trained {trained('expert', expert)}; {trained('anti-expert', anti)}."
    if is_main():
        notes += f"\n\n```\n{_combine(method, pair, stages.out / COMBINED, method.alpha[0])}\n```"
    kind = "weights" if method.merged else "adapter"

    def variant(alpha: float, folder: Path) -> None:
        _fill(method, stages, pair, alpha, folder)

    each = [(a, method.model_copy(update={"alpha": (a,)}), partial(variant, a)) for a in method.alpha]
    write_scales(stages, "adapter" if kind == "adapter" else "weights", each)
    remove = [stages.out / COMBINED, stages.out / MERGED]
    if not method.keep_adapters:
        remove += [stages.out / name / "artifact" for name in (EXPERT, ANTI)]
    outcomes = [(EXPERT, expert), (ANTI, anti)]
    return stages.made("adapter" if kind == "adapter" else "weights", notes, partial(variant, method.alpha[0]), outcomes, remove)


def _stage(method: ExtSubPipeline, stages: Stages, data: Sources) -> FineTuneRun:
    """Returns one stage's run. Both have the same seed: their adapters start from the same factor A, so that they are
    comparable."""
    run = stages.run
    shared = {name: getattr(run, name) for name in FineTuneRun.model_fields if name not in OWN}
    training = run.training.model_copy(update={"lora": True})
    return FineTuneRun(**shared, training=training, data=data, parameters=method.parameters)


def _combine(method: ExtSubPipeline, pair: tuple[Path, Path], out: Path, alpha: float) -> str:
    """Writes out/artifact, an adapter; returns its description."""
    shutil.rmtree(out, ignore_errors=True)
    if method.arithmetic == "expert":
        shutil.copytree(pair[0], out / "artifact")
        return "the expert alone"
    arithmetic = ExtSub(alpha=alpha, zero_expert=method.zero_expert)
    plain = AdapterSubtraction(alpha=alpha)
    result: AdapterResult = merge_adapters(
        arithmetic if method.arithmetic == "ext_sub" else plain, models=pair, out=out, rank=method.rank
    )
    return result.sentences()


def _fill(method: ExtSubPipeline, stages: Stages, pair: tuple[Path, Path], alpha: float, folder: Path) -> None:
    combined = stages.out / COMBINED
    _combine(method, pair, combined, alpha)
    if not method.merged:
        copy_artifact(combined / "artifact", pair[0], folder)
        return
    stages.merge(TaskArithmetic(), [combined / "artifact"], MERGED)
    copy_artifact(stages.out / MERGED / "artifact", pair[0], folder)
