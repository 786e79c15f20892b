"""Defines the interface between a run and the runtime of its method's family: a Context in, what was Made out.

`run.py` checks the input, lets the family's runner produce, and publishes what it made; it knows no family by name. A family's
package (`training`, `editing`, `guarding`, `composing`) offers one Runner.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from transformers import PreTrainedModel

from expunge.artifact import Kind
from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.methods.base import ObjectiveBuilder
from expunge.methods.training.base import AnswerDrawer
from expunge.models.limits import FEW, check_finite
from expunge.models.reading import check_reading
from expunge.records import SelfCheck
from expunge.spec import AcquisitionRun, FineTuneRun, Run
from expunge.start import Start

AnyRun = Run | FineTuneRun | AcquisitionRun


class Made(NamedTuple):
    """The result of a runner. Nothing of the artifact is on disk until `write` is called."""

    kind: Kind
    notes: str
    """Markdown for the artifact's card; no text of the forget set."""
    write: Callable[[Path], None]
    """Fills the artifact's folder."""
    steps: int
    stopped: str | None
    """Why training ended before its last planned step, or None."""
    processes: int
    device_seconds: float
    peak_memory_bytes: int
    counts: Mapping[str, int] = MappingProxyType({})
    """Further row counts for provenance.json, by name: of the parts that the forget set was split into."""
    settings: Mapping[str, float | int | str | bool] = MappingProxyType({})
    """How the weights were moved, for provenance.json, with the values that expunge chose; of a stage with its name before."""
    adapter_goes_on: bool = False
    """Whether this is the adapter that the run started from, trained further: its base model stays the same."""
    done: Callable[[], None] = lambda: None
    """Called when the artifact is in place."""
    self_check: SelfCheck | None = None
    """Measurements before and after, if any."""
    examine: Callable[[Path], SelfCheck] | None = None
    """Measures the artifact's folder after `write` has filled it, if there was no model to measure before."""


class Outcome(NamedTuple):
    """The result of a run."""

    folder: Path
    artifact: Path
    steps: int
    stopped: str | None
    notes: str = ""
    """What the artifact's card says about how it was made; empty if the run was complete already."""
    self_check: SelfCheck | None = None
    """Measurements on a few rows, before and after."""


class Execute(Protocol):
    """Type of `run.execute`, passed down so that a composed method can run its stages."""

    def __call__(
        self,
        run: AnyRun,
        out: Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        quiet: bool = False,
        before: Callable[[], None] = ...,
    ) -> Outcome: ...


@dataclass(frozen=True)
class Context:
    """Everything that a runner may use. The input has been checked; no model is loaded and nothing is written yet."""

    run: AnyRun
    request: Request
    start: Start
    """The model that the run starts from."""
    encoder: Encoder
    out: Path
    resume: bool
    overwrite: bool
    quiet: bool
    prepare: Callable[[], None]
    """Makes the run's folder, writes run.yaml and removes what a replaced run left. A runner calls it after its last check of
    the input and before its first file; it may be called again."""
    execute: Execute
    """Executes another run, for a stage."""
    check: Callable[[AnyRun, Request], None]
    """Raises ExpungeError if a request does not fit a run, for a stage."""
    build_objective: ObjectiveBuilder | None = None
    """For guards that are tuned by a score."""
    draw_answers: AnswerDrawer | None = None
    """For methods that prefer what the start model makes up."""
    measures: bool = True
    """Whether a self-check was asked for (`checks_itself`)."""

    @property
    def checks_itself(self) -> bool:
        """Returns whether the self-check is run: not for fine-tuning."""
        return self.measures and isinstance(self.run, Run)

    def load(self, *, keep_adapter: bool = False) -> PreTrainedModel:
        """Loads the start model in the run's dtype; an adapter is merged into its weights, or kept with `keep_adapter`.

        Raises ExpungeError if its weights are broken, or it does not read text as expunge does.
        """
        run = self.run
        model = self.start.load(
            run.dtype, device_map=run.device_map, trust_remote_code=run.trust_remote_code, keep_adapter=keep_adapter
        )
        first = self.request.forget[0]
        check_finite(model, self.encoder.tokenizer(first.prompt or first.response)["input_ids"][:FEW])
        check_reading(model)
        return model


def _as_said(run: AnyRun, request: Request, start: Start) -> tuple[AnyRun, Request]:
    return run, request


class Runner(NamedTuple):
    """The functions that run the methods of one family."""

    check: Callable[[AnyRun, Request], None]
    """Raises ExpungeError if the request lacks what the method needs; called before a model is loaded."""
    produce: Callable[[Context], Made]
    spreads: bool
    """Whether the start model's layers may be spread over several devices (`--device-map`)."""
    resolve: Callable[[AnyRun, Request, Start], tuple[AnyRun, Request]] = _as_said
    """Replaces what the run leaves open by values, which are recorded in its folder."""
    has_stages: bool = False
    """Whether the work is done by stages with their own run.yaml, which decide themselves what `--resume` can reuse."""
