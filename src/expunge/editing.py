"""Runs a method that edits weights in place: a few forward passes without gradient, then a complete model."""

from functools import partial

from expunge.data.example import Request
from expunge.folders import check_room
from expunge.memory import Cost
from expunge.methods.base import InPlaceEditing
from expunge.models.reading import bounded
from expunge.models.save import model_bytes, save_model
from expunge.processes import count, place
from expunge.runner import AnyRun, Context, Made, Runner
from expunge.self_check import measure, measure_start, self_check


def check(run: AnyRun, request: Request) -> None:
    """Raises ExpungeError if the request lacks what the method needs."""
    _method(run).require(request)


def produce(context: Context) -> Made:
    """Edits the start model; under torchrun the processes share the passes over the data."""
    model = place(context.load())
    encoder = bounded(context.encoder, model)
    before = measure_start(model, encoder, context.request) if context.checks_itself else None
    cost = Cost()
    notes = _method(context.run).apply(model, context.request, encoder)
    spent = cost.so_far()
    check_room(context.out, model_bytes(model), "the edited model")
    context.prepare()
    write = partial(save_model, model=model, tokenizer=context.encoder.tokenizer, format=context.encoder.format)
    found = None
    if before is not None:
        found = self_check(before, measure(model, encoder, context.request), context.request, None)
    return Made("weights", notes, write, 0, None, count(), *spent[1:], self_check=found)


RUNNER = Runner(check, produce, spreads=True)


def _method(run: AnyRun) -> InPlaceEditing:
    assert isinstance(run.method, InPlaceEditing)  # the family says so, and `expunge unlearn` takes no merging method
    return run.method
