"""Runs a guarding method: fits the guard on the start model, whose weights are not changed."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.guarding import canaries, life
from expunge.memory import Cost
from expunge.methods.base import GuardingMethod, State
from expunge.models.reading import bounded
from expunge.processes import count, place
from expunge.runner import AnyRun, Context, Made, Runner
from expunge.self_check import guard_check


def check(run: AnyRun, request: Request) -> None:
    """Raises ExpungeError if the request lacks what the method needs."""
    _method(run).require(request)


def produce(context: Context) -> Made:
    """Fits the guard; under torchrun the processes share the passes over the data."""
    method, model = _method(context.run), place(context.load())
    cost = Cost()
    assets = TemporaryDirectory(prefix="expunge-")  # removed once the artifact is written, or when nobody holds it any more
    state = life.fit(
        method,
        model,
        context.request,
        bounded(context.encoder, model),
        build_objective=context.build_objective,
        assets=Path(assets.name),
    )
    spent = cost.so_far()
    notes = method.summary(state)
    if "canary.ids" in state:
        notes += "\n\nguard.safetensors holds some forget and retain prompts, as tokens: by them its loader checks it."
    context.prepare()
    write = partial(_write, state, context.encoder, assets)
    found = None
    if "canary.ids" in state and context.measures:
        distances = state["calibration.forget"].tolist() if "calibration.forget" in state else []
        found = guard_check(*canaries.effects(state), measured=[distance <= 1 for distance in distances])
    return Made("guard", notes, write, 0, None, count(), *spent[1:], self_check=found)


def _write(state: State, encoder: Encoder, assets: "TemporaryDirectory[str]", folder: Path) -> None:
    life.save(folder, state, encoder)
    assets.cleanup()


RUNNER = Runner(check, produce, spreads=True)


def _method(run: AnyRun) -> GuardingMethod:
    assert isinstance(run.method, GuardingMethod)  # the family says so
    return run.method
