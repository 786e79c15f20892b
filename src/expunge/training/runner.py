"""Runs a training method: encodes the request, trains, and returns how to write the result."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from transformers import PreTrainedModel

from expunge.artifact import Kind
from expunge.data.example import Request
from expunge.errors import ExpungeError
from expunge.folders import check_room
from expunge.methods.training.base import TrainingMethod
from expunge.models.fused import available, fused
from expunge.models.reading import bounded
from expunge.models.save import save_model
from expunge.runner import AnyRun, Context, Made, Runner
from expunge.self_check import measure, measure_start, self_check
from expunge.spec import Run
from expunge.training.alternates import with_alternates
from expunge.training.checkpoints import disk_bytes
from expunge.training.data import encode_data
from expunge.training.defaults import resolve
from expunge.training.hardening import check_wrappers, wrappers
from expunge.training.limits import check_dtype, checked_rows, lost_answers
from expunge.training.loop import train
from expunge.training.settings import Training
from expunge.training.weights import select_weights

CHOSEN = {"learning_rate", "steps", "epochs", "batch_size", "stop_when_unknown"}
"""Fields of the training that provenance.json and the report name."""
HARDENED = {"sharpness_aware", "latent_adversarial", "latent_radius", "remove_top_directions", "quantization_aware"}
"""Further ones of runs that a wrapper of `hardening/` makes."""


def check(run: AnyRun, request: Request) -> None:
    """Raises ExpungeError if the request lacks a row set that the method needs; warns about one that is not used."""
    method = _method(run)
    check_wrappers(run.training)
    if request.retain and not method.uses_retain:
        warnings.warn(f"{method.method_name()} does not use the retain set", UserWarning, stacklevel=2)
    if method.uses_retain and not request.retain:
        raise ExpungeError(
            f"{method.method_name()} needs a retain set; give --retain, or --retain-loss none where the method has it"
        )
    if method.uses_refusals and any(e.prompt is None for e in request.forget):
        raise ExpungeError(
            f"{method.method_name()} answers prompts with a refusal, and the forget set has raw text; give prompt and response"
        )


def produce(context: Context) -> Made:
    """Trains from the start model, or resumes from the last checkpoint in the run's folder."""
    run, method = context.run, _method(context.run)
    data = encode_data(context.request, method, context.encoder)
    goes_on = context.start.is_adapter and run.training.lora
    model = context.load(keep_adapter=goes_on)
    check_dtype(model.dtype)
    if (encoder := bounded(context.encoder, model)) is not context.encoder:
        data = encode_data(context.request, method, encoder)
    data = checked_rows(model, data, encoder)
    lost = lost_answers(context.request, data, encoder)
    selection = select_weights(model, method, run.training)
    check_room(context.out, disk_bytes(model, selection.weights, run.training), "this run with its checkpoints")
    before = measure_start(model, encoder, context.request) if context.checks_itself else None
    context.prepare()
    if method.asking is not None:
        draw, seed = context.draw_answers, run.training.seed
        data = with_alternates(data, context.request.forget, method, model, encoder, draw, context.out, seed, quiet=context.quiet)
    with _kernels(model, run.training):
        trained = train(model, method, data, run.training, context.out, quiet=context.quiet)
    notes = "Trained for {} steps with a peak learning rate of {} on {}. {}{}{}".format(
        trained.steps,
        run.training.learning_rate,
        ", ".join(f"{len(v)} {k} examples" for k, v in run.row_sets(context.request).items()),
        " ".join(said for said in (selection.said, data.smaller(run.training.batch_size), lost) if said),
        f" Hardened by {', '.join(wrappers(run.training))}." if wrappers(run.training) else "",
        f" Stopped early: {trained.stopped}." if trained.stopped else "",
    )
    if isinstance(run, Run) and context.request.holdout and not run.holdout:
        notes += (
            " The holdout examples are the forget examples with other names, made to tell how probable answers never seen are."
        )
    if goes_on:
        notes += f" The adapter {context.start.place} was trained further, with its own rank and scale."
    kind: Kind = "adapter" if run.training.lora else "weights"
    tokenizer = context.encoder.tokenizer
    write = partial(save_model, model=trained.model, tokenizer=tokenizer, format=run.format, weights=trained.gathered)
    found = None
    if before is not None:
        rate = run.training.learning_rate
        assert rate != "auto"  # `resolve` has chosen one
        found = self_check(before, measure(trained.model, encoder, context.request), context.request, rate)
    named = CHOSEN | HARDENED if wrappers(run.training) else CHOSEN
    settings = run.training.model_dump(mode="json", include={*named, "disruption_budget"}, exclude_none=True)
    if isinstance(layer := getattr(run.method, "layer", None), int):
        settings["layer"] = layer
    if trained.disruption is not None:
        settings["disruption_kl"] = float(f"{trained.disruption:.3g}")
        notes += f" On neutral text the model changed by {trained.disruption:.3g} nats per token (KL)."
    return Made(kind, notes, write, *trained[2:7], settings=settings, adapter_goes_on=goes_on, self_check=found)


def _kernels(model: PreTrainedModel, training: Training) -> AbstractContextManager[int]:
    """Replaces norms and MLP products by Liger's kernels for the whole run, including frozen values, so that both use the
    same arithmetic; not with sharding."""
    wanted = training.kernels == "auto" and training.shard == "none" and available(model.device.type)
    return fused(model) if wanted else nullcontext(0)


RUNNER = Runner(check, produce, spreads=False, resolve=resolve)


def _method(run: AnyRun) -> TrainingMethod:
    assert isinstance(run.method, TrainingMethod)  # the family says so
    return run.method
