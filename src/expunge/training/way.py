"""Moves weights back towards an earlier point, for runs that went too far between two checks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Way:
    """The straight line in weight space from an earlier point to the current weights."""

    weights: Sequence[nn.Parameter]
    begin: Sequence[Tensor]
    end: Sequence[Tensor]

    @classmethod
    def since(cls, weights: Sequence[nn.Parameter], begin: Sequence[Tensor]) -> "Way":
        """Creates it from copies of the weights at the earlier point."""
        return cls(weights, begin, copies(weights))

    @torch.no_grad()
    def place(self, share: float) -> None:
        """Sets the weights to a point on the line: 0 is the earlier one, 1 the later one."""
        for weight, begin, end in zip(self.weights, self.begin, self.end, strict=True):
            weight.copy_(begin + (end - begin) * share)


def copies(weights: Iterable[nn.Parameter]) -> list[Tensor]:
    """Returns copies of the weights as they are now."""
    return [weight.detach().clone() for weight in weights]
