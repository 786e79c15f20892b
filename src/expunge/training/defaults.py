"""Chooses the settings that a run leaves open, by the number of rows, the size of the model, and full weights or adapters.

    learning rate   the method's own, which suits a model of 7 billion weights, times (7e9 / weights)^0.4, and ten times that for
                    adapters. Small models need larger steps: 260 thousand weights forget twenty rows at 6e-4 and not at 1e-5,
                    a million at 3e-4, and published runs with 7 billion take 1e-5 (1e-4 with adapters)
    length          until the forget answers are as improbable as those of rows never seen (`stop_when_unknown`), within 200 steps
                    or 10 epochs, whichever is more; 10 epochs and at least 60 steps for methods that do not aim at that, and for
                    rows without names, of which no rows never seen can be made
    stops           are checked after every step if that is cheap, which is up to 128 forget rows

docs/training.md has the measurements.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

from expunge.data.example import Request
from expunge.data.never_seen import never_seen
from expunge.errors import ExpungeError
from expunge.methods.training.base import TrainingMethod
from expunge.spec import Run

if TYPE_CHECKING:
    from expunge.runner import AnyRun
    from expunge.start import Start
    from expunge.training.pairs import Pairs
    from expunge.training.settings import Training

Kind = TypeVar("Kind", bound="AnyRun")

USUAL_SIZE = 7e9
"""Size of the models for which the methods' own learning rates were published."""
EXPONENT = 0.4
ADAPTERS = 10
EPOCHS, LEAST_STEPS, MOST_STEPS = 10.0, 60, 200
FEW_ROWS = 128
ROUNDED = 0.0051
"""Epochs are recorded to two digits."""


def resolve(run: Kind, request: Request, start: Start) -> tuple[Kind, Request]:
    """Returns the run with a value for every `auto`, and the request with rows never seen if the run compares with such.

    Raises ExpungeError if the run is to stop at the level of rows never seen, but there are none and none can be made.
    """
    from expunge.training.pairs import Pairs

    method, training = run.method, run.training
    assert isinstance(method, TrainingMethod)  # the family says so
    rows = len(request.forget)
    changes: dict[str, object] = {}
    if training.learning_rate == "auto" or method.leaves_depth_open:
        size = start.size(trust_remote_code=run.trust_remote_code)
        method = method.for_depth(size.blocks)
        if training.learning_rate == "auto":
            changes["learning_rate"] = learning_rate(method, size.weights, lora=training.lora)
    open_length = training.steps == "auto" and training.epochs == "auto"
    stops, request = _compared(training, request, by_default=open_length and method.aims_at_unknown)
    changes["stop_when_unknown"] = stops
    stops = stops or isinstance(training.until, float)
    if open_length and stops and rows <= FEW_ROWS:
        changes["stop_every"] = 1
    plan = Pairs(rows, 0, training.batch_size, training.seed, method.forget_parts(request))
    changes["steps"] = steps = _steps(training, plan, stops=stops)
    if training.epochs == "auto":
        changes["epochs"] = round(steps * _epochs_of_step(training, rows), 2)
    resolved: dict[str, object] = {"training": training.model_copy(update=changes)}
    if isinstance(run, Run):
        resolved["method"] = method
    return cast("Kind", run.model_copy(update=resolved)), request  # a copy is of the kind that it copies


def _compared(training: Training, request: Request, *, by_default: bool) -> tuple[bool, Request]:
    """Returns whether the run compares with rows never seen, and the request with such rows if it does.

    by_default  it does if nothing was said of where to stop, and such rows are there or can be made
    """
    asked = training.stop_when_unknown or training.until == "never-seen"
    if asked and isinstance(training.until, float):
        raise ExpungeError("--until and --stop-when-unknown both say how far to forget; give one of them")
    stops = asked or (by_default and training.until is None)
    if not stops or request.holdout:
        return stops, request
    made = never_seen(request.forget, request.retain, training.seed)
    if not made and asked:
        raise ExpungeError(
            "--stop-when-unknown compares with rows that the model never saw; none can be made of rows without names in "
            "their prompts, so give them as --holdout"
        )
    return bool(made), replace(request, holdout=made)


def _steps(training: Training, plan: Pairs, *, stops: bool) -> int:
    """Returns the number of steps; warns if steps and epochs are both given and differ.

    stops  the run may stop by itself, so the number is a bound
    """
    steps, epochs = training.steps, training.epochs
    if steps == "auto":
        if epochs != "auto":
            return plan.total_steps(epochs)
        return max(plan.total_steps(EPOCHS), MOST_STEPS if stops else LEAST_STEPS)
    in_epochs = steps * _epochs_of_step(training, plan.forget)
    if epochs != "auto" and steps != plan.total_steps(epochs) and abs(epochs - in_epochs) > ROUNDED:
        warnings.warn(
            f"--steps {steps} and --epochs {epochs:g} ({plan.total_steps(epochs)} steps) are different lengths; the run has "
            f"{steps} steps",
            UserWarning,
            stacklevel=3,
        )
    return steps


def _epochs_of_step(training: Training, rows: int) -> float:
    """Returns the share of the forget rows that one step takes."""
    return min(training.batch_size, rows) / rows


def learning_rate(method: TrainingMethod, weights: int, *, lora: bool) -> float:
    """Returns the peak learning rate for a model of this size, to two digits."""
    return scaled_rate(method.learning_rate, weights, lora=lora)


def scaled_rate(usual: float, weights: int, *, lora: bool) -> float:
    """Returns the learning rate for a model of this size, from that for 7 billion weights, to two digits."""
    return float(f"{usual * (USUAL_SIZE / weights) ** EXPONENT * (ADAPTERS if lora else 1):.1e}")
