"""Goes back a part of the way that weights have come since a check, for runs that went too far in one interval."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Way:
    """The straight way of some weights from an earlier point to where they are."""

    weights: Sequence[nn.Parameter]
    begin: Sequence[Tensor]
    end: Sequence[Tensor]

    @classmethod
    def since(cls, weights: Sequence[nn.Parameter], begin: Sequence[Tensor]) -> "Way":
        """Creates it from copies of the weights at the earlier point."""
        return cls(weights, begin, copies(weights))

    @torch.no_grad()
    def place(self, share: float) -> None:
        """Sets the weights to a point: 0 is the earlier one, 1 where they were."""
        for weight, begin, end in zip(self.weights, self.begin, self.end, strict=True):
            weight.copy_(begin + (end - begin) * share)


def copies(weights: Iterable[nn.Parameter]) -> list[Tensor]:
    """Returns copies of the weights as they are now."""
    return [weight.detach().clone() for weight in weights]
