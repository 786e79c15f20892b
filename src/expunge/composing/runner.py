"""Runs a composed method: its stages are ordinary runs, and one artifact is made from theirs.

A stage has its own run.yaml and is resumed or skipped by `--resume` like any other run. Settings of the composition only (the
scale of a negation, how parts are merged) may differ when a run is resumed.
"""

from collections.abc import Callable
from typing import Any

from expunge.composing.acquisition import acquire_and_negate, check_training
from expunge.composing.checking import Check
from expunge.composing.expert_pair import subtract_anti_expert
from expunge.composing.negation import negate
from expunge.composing.parts import unlearn_parts
from expunge.composing.stages import Stages
from expunge.data.example import Request
from expunge.methods.base import ComposedMethod
from expunge.methods.composed.ext_sub_pipeline import ExtSubPipeline
from expunge.methods.composed.sku import SKU
from expunge.methods.composed.spunge import Spunge
from expunge.methods.composed.task_vector_negation import TaskVectorNegation
from expunge.methods.training.base import TrainingMethod
from expunge.processes import is_main
from expunge.runner import AnyRun, Context, Made, Runner
from expunge.start import Start

COMPOSERS: dict[type[ComposedMethod], Callable[[Any, Stages], Made]] = {
    TaskVectorNegation: negate,
    Spunge: unlearn_parts,
    SKU: acquire_and_negate,
    ExtSubPipeline: subtract_anti_expert,
}
"""The function that runs each composed method. A new one is its file and one line here."""


def check(run: AnyRun, request: Request) -> None:
    """Raises ExpungeError if the request lacks what the method needs, or settings of the training do not go with it."""
    method = _method(run)
    method.require(request)
    if isinstance(method, SKU):
        check_training(method, run.training)


def resolve(run: AnyRun, request: Request, start: Start) -> tuple[AnyRun, Request]:
    """Returns the run with the layer that the method of every part reads, so that the artifact's manifest names it."""
    method = _method(run)
    if isinstance(method, Spunge) and isinstance(method.each, TrainingMethod) and method.each.leaves_depth_open:
        each = method.each.for_depth(start.size(trust_remote_code=run.trust_remote_code).blocks)
        run = run.model_copy(update={"method": method.model_copy(update={"each": each})})
    return run, request


def produce(context: Context) -> Made:
    """Runs the stages below the run's folder; the artifact is made from theirs when `Made.write` is called."""
    method = _method(context.run)
    context.start.require_complete(method.method_name())
    check = Check.of(context) if context.checks_itself and is_main() else None
    made = COMPOSERS[type(method)](method, Stages(context))
    context.prepare()  # where every stage was complete already, none of them has
    return made if check is None else made._replace(examine=check.examine)


RUNNER = Runner(check, produce, spreads=False, resolve=resolve, has_stages=True)


def _method(run: AnyRun) -> ComposedMethod:
    assert isinstance(run.method, ComposedMethod)  # the family says so
    return run.method
