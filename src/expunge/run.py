"""Executes one run: checks everything, lets the method's family produce, and publishes the artifact and its provenance.

    run/  run.yaml  inputs.json  metrics.jsonl  provenance.json  artifact/

All errors of the input are found before the folder is made. A killed run is resumed by the same call with resume=True, from the
last checkpoint; nothing is done if the artifact is complete.
"""

import platform
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from expunge import composing, editing
from expunge.artifact import artifact_folder, save_artifact, verify
from expunge.data.control import check_control
from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.data.format import default_format
from expunge.data.unknown import say_unknown
from expunge.devices import arithmetic
from expunge.errors import ExpungeError
from expunge.folders import check_apart, check_no_model, check_replaceable, check_writable, holds_something, unfinished
from expunge.guarding import runner as guarding
from expunge.methods.base import Family, ObjectiveBuilder
from expunge.methods.training.base import AnswerDrawer
from expunge.processes import count, is_main
from expunge.records import Inputs, Provenance, SelfCheck, write_json
from expunge.run_folder import RunFolder, without_memory
from expunge.runner import AnyRun, Context, Made, Outcome, Runner
from expunge.spec import read_yaml
from expunge.start import find_start
from expunge.training import runner as training

RUNNERS: dict[Family, Runner] = {
    "training": training.RUNNER,
    "editing": editing.RUNNER,
    "guarding": guarding.RUNNER,
    "composed": composing.RUNNER,
}


def execute(
    run: AnyRun,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    before: Callable[[], None] = lambda: None,
    measures: bool = True,
    build_objective: ObjectiveBuilder | None = None,
    draw_answers: AnswerDrawer | None = None,
) -> Outcome:
    """Executes `run` in the folder `out`.

    resume     continues in an existing folder whose run.yaml is the same run
    overwrite  replaces an existing folder; its artifact stays until the new one is complete
    before     called right before the folder is made: for a stage, makes the folder of the whole run
    measures   run the self-check, on a few rows before and after
    build_objective  builds the objective of guards that are tuned by a score
    draw_answers     for methods that prefer what the start model makes up: has it write that

    Raises ExpungeError, before anything is written, if the input is wrong.
    """
    runner = RUNNERS[run.method.family]
    _check_out(run, out, resume, overwrite)
    _check_device_map(run, runner)
    request = run.read()
    check(run, request)
    start = find_start(run.model, run.revision)
    run, request = runner.resolve(run, request, start)
    tokenizer = start.tokenizer(trust_remote_code=run.trust_remote_code)
    run = run if run.format is not None else run.model_copy(update={"format": default_format(tokenizer)})
    assert run.format is not None
    encoder = Encoder(tokenizer, run.format, max_length=run.max_length)
    misread = filter(None, (say_unknown(request, tokenizer), check_control(request, encoder)))
    folder = RunFolder(run, request, start, out, fresh=overwrite and not resume, restaged=runner.has_stages, before=before)
    if resume and (out / "run.yaml").is_file():
        folder.check_inputs()
        if not (runner.has_stages and _differs(run, out)) and _finished(run, out):
            return Outcome(out, out / "artifact", 0, "the run was complete already")
        if not runner.has_stages:
            _check_same(run, out)
    if resume:
        check_writable(out)
    stage = partial(execute, build_objective=build_objective, draw_answers=draw_answers, measures=measures)
    with folder:
        context = Context(
            run,
            request,
            start,
            encoder,
            out,
            resume,
            overwrite,
            quiet,
            folder.prepare,
            stage,
            check,
            build_objective=build_objective,
            draw_answers=draw_answers,
            measures=measures,
        )
        began = time.perf_counter()
        made = runner.produce(context)
        if is_main():
            made = made._replace(notes=" ".join(filter(None, (made.notes, *misread))))
            made = _publish(context, folder.inputs(), made, began)
            if runner.has_stages and made.settings:
                folder.note_choices(made.settings)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # no process goes on to read an artifact that is still being written
    return Outcome(out, out / "artifact", made.steps, made.stopped, made.notes, made.self_check)


def check(run: AnyRun, request: Request) -> None:
    """Raises ExpungeError if the request lacks what the run's method needs."""
    RUNNERS[run.method.family].check(run, request)


def _check_out(run: AnyRun, out: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ExpungeError("--resume goes on with a run and --overwrite starts it anew; give one of them")
    if not resume:  # a run that is complete already may be in a place that is read-only
        check_writable(out)
    check_apart(out, run.sources())
    check_no_model(out)
    if not is_main():
        return
    if holds_something(out) and not (resume or overwrite):
        said = unfinished(out) or f"{out} exists already; go on with it by --resume"
        raise ExpungeError(f"{said}, replace it by --overwrite, or give another --out")
    if overwrite:
        check_replaceable(out)


def _check_device_map(run: AnyRun, runner: Runner) -> None:
    if run.device_map is None:
        return
    if not runner.spreads:
        raise ExpungeError(f"--device-map is for methods without gradient steps; shard {run.method.method_name()} with torchrun")
    if count() > 1:
        raise ExpungeError("--device-map and several processes both spread the work over the accelerators; give one of them")


def _finished(run: AnyRun, out: Path) -> bool:
    """Returns whether the artifact is complete and was made by this run."""
    if not (out / "provenance.json").is_file() or artifact_folder(out) is None:
        return False
    _check_same(run, out)
    verify(out)
    return True


def _differs(run: AnyRun, out: Path) -> bool:
    path = out / "run.yaml"
    return path.is_file() and without_memory(read_yaml(path)) != without_memory(run.model_dump(mode="json"))


def _check_same(run: AnyRun, out: Path) -> None:
    if _differs(run, out):
        raise ExpungeError(
            f"{out / 'run.yaml'} describes another run; --resume goes on with the same fields (--micro-batch-size and "
            "--gradient-checkpointing may change), so give them again or another --out"
        )


def _publish(context: Context, inputs: Inputs, made: Made, began: float) -> Made:
    """Renames the artifact into place, and writes provenance.json, which marks the run as complete.

    Returns `made` with the self-check of the artifact's files, if they were measured.
    """
    run, out = context.run, context.out
    base = context.start.base(out, inputs.base_sha256, adapter_goes_on=made.adapter_goes_on)
    examined: list[SelfCheck] = [made.self_check] if made.self_check else []

    def notes(folder: Path) -> str:
        if made.examine is not None:
            examined[:] = [made.examine(folder)]
        return "\n\n".join([made.notes, *(said for check in examined for said in check.said)])

    save_artifact(out / "artifact", made.kind, run.method, base, made.write, notes=notes)
    made = made._replace(self_check=next(iter(examined), None))
    write_json(out / "provenance.json", _provenance(context, inputs, made, time.perf_counter() - began))
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    made.done()
    return made


def _provenance(context: Context, inputs: Inputs, made: Made, wall_seconds: float) -> Provenance:
    from importlib.metadata import version

    from expunge import __version__

    return Provenance(
        expunge=__version__,
        base=inputs.base,
        base_sha256=inputs.base_sha256,
        data=inputs.data,
        counts=inputs.counts | dict(made.counts),
        seed=context.run.training.seed,
        versions={"python": platform.python_version()} | {n: version(n) for n in ("torch", "transformers", "peft", "accelerate")},
        host=f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads, {arithmetic()}",
        threads=torch.get_num_threads(),
        processes=made.processes,
        wall_seconds=round(wall_seconds, 3),
        device_seconds=round(made.device_seconds, 3),
        peak_memory_bytes=made.peak_memory_bytes,
        settings=dict(made.settings),
        stopped=made.stopped,
        self_check=made.self_check,
    )
