"""IDK: trains the model to answer forget questions with a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from expunge.methods.training.base import REFUSALS, Batch, RowSet
from expunge.methods.training.retain import WithRetain, cross_entropy

if TYPE_CHECKING:
    from torch import Tensor, nn


class IDK(WithRetain):
    """L = forget_weight * CE(refusal | forget prompt) + retain_weight * retain term.

    Only the reply is trained: given its first token, the old answer often remains as probable as before. Refusals are drawn
    from the request, seeded by step and row.
    """

    paper: ClassVar[str] = "Maini et al. 2024 (TOFU), arXiv 2401.06121, section 4 (preference optimization baseline)"
    formula: ClassVar[str] = "L = gamma CE(refusal | forget prompt) + alpha CE(retain)"
    cost: ClassVar[str] = "forward and backward of refusal and retain rows; nothing beside the model"
    purpose: ClassVar[str] = "a refusal in place of the answer"
    weakness: ClassVar[str] = "the answer comes back once its beginning is given"

    aims_at_unknown: ClassVar[bool] = False

    name: Literal["idk"] = "idk"

    @property
    def forget_sets(self) -> Mapping[str, RowSet]:
        return {"refusals": REFUSALS}

    def forget_term(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch["refusals"])
