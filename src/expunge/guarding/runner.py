"""Runs a guarding method: fits the guard on the start model; the weights stay as they are."""

from functools import partial

from expunge import guards
from expunge.data.example import Request
from expunge.memory import Cost
from expunge.methods.base import GuardingMethod
from expunge.processes import count, place
from expunge.runner import AnyRun, Context, Made, Runner


def check(run: AnyRun, request: Request) -> None:
    """Raises where the request lacks what the method needs."""
    _method(run).require(request)


def produce(context: Context) -> Made:
    """Fits the guard; under torchrun the processes share the passes over the data."""
    method, model = _method(context.run), place(context.load())
    cost = Cost()
    state = guards.fit(method, model, context.request, context.encoder)
    spent = cost.so_far()
    notes = method.summary(state)
    if "canary.ids" in state:
        notes += "\n\nguard.safetensors holds some forget and retain prompts, as tokens: by them its loader checks it."
    context.prepare()
    return Made("guard", "L0", notes, partial(guards.save, state=state, encoder=context.encoder), 0, None, count(), *spent[1:])


RUNNER = Runner(check, produce, spreads=True)


def _method(run: AnyRun) -> GuardingMethod:
    assert isinstance(run.method, GuardingMethod)  # the family says so
    return run.method
