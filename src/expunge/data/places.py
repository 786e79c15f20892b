"""Finds the positions from which labels are predicted: shifts labels by one position and skips ignored ones.

Shape suffixes: B rows, T positions, N labelled tokens of a batch in row-major order.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""The label of a position that is not learned and not scored (torch's own default for cross-entropy)."""


class Places(NamedTuple):
    """The labelled tokens of a batch."""

    labels_N: "Tensor"
    index_N: "Tensor"
    """Index into the B * T positions of the one before the label, where it is predicted."""


def places_of(labels_BT: "Tensor", attention_mask_BT: "Tensor") -> Places:
    """Computes the positions on the labels' device. On a GPU their number is unknown in advance, so the CPU waits for it.

    Raises ValueError if a label has no token before it.
    """
    index_N = (labels_BT != IGNORED).flatten().nonzero()[:, 0]
    before_N = index_N - 1
    alone_N = (index_N % labels_BT.shape[1] == 0) | (attention_mask_BT.flatten()[before_N] == 0)
    if alone_N.any():
        raise ValueError("the first token of a row has a label, but nothing stands before it to predict it from")
    return Places(labels_BT.flatten()[index_N], before_N)
