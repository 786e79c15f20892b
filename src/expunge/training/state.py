"""Defines what the training loop carries from step to step, and the checks that may end a run."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.training.data import NONE_REST, Resting
from expunge.training.disruption import Disruption
from expunge.training.stopping import Watch


@dataclass
class State:
    """The state of the training loop between steps."""

    model: PreTrainedModel
    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    carried: Mapping[str, Tensor]
    """Tensors that the method carries from step to step."""
    step: int = 0
    stopped: str | None = None
    resting: bool = False
    """Only the retain terms are backpropagated until the next check of `Watch`."""
    resting_rows: Resting = NONE_REST
    """Parts of forget rows that take no part in the steps until then."""
    updating: bool = False
    """The optimizer is changing weights, so that they belong to no step."""


@dataclass
class Checks:
    """The checks that decide, every `stop_every` steps, whether a run ends."""

    watch: Watch | None
    disruption: Disruption | None
    finished: Callable[[], str | None]
    """The method's own rule."""

    @property
    def change_weights(self) -> bool:
        """Returns whether a check may set the weights back, so that checkpoints belong behind it."""
        return self.watch is not None or self.disruption is not None

    def mark(self, weights: Iterable[nn.Parameter]) -> None:
        """Stores the weights of the first step, to which a step may be reversed."""
        for one in (self.watch, self.disruption):
            if one is not None:
                one.mark(weights)

    def run(self, state: State, *, last: bool) -> None:
        """Sets `state.stopped` if the run ends, and what rests until the next check.

        last  after the last step, where only the budget is checked
        """
        weights = list(state.trained.values())
        if self.watch is not None and not last:
            before = state.resting
            state.stopped, state.resting, state.resting_rows = self.watch.check(state.model, weights, resting=before)
            if state.resting != before:
                _clear_momentum(state)
        if self.disruption is not None:
            state.stopped = self.disruption.check(state.model, weights) or state.stopped
        if state.stopped is None and not last:
            with torch.no_grad():
                state.stopped = self.finished()


def _clear_momentum(state: State) -> None:
    """Sets the first moments to zero: momentum would continue the phase before, forgetting or repair, for some ten steps."""
    for moments in state.optimizer.state.values():
        moments["exp_avg"].zero_()
