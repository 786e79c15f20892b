"""LLMU: maximizes the loss on forget, trains forget prompts with other answers, and keeps the retain distribution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from expunge.methods.training.base import FORGET, Batch, RowSet, Term, TrainingMethod
from expunge.methods.training.mismatch import MISMATCHED
from expunge.methods.training.retain import cross_entropy, kl_to_start

if TYPE_CHECKING:
    from torch import nn


class LLMU(TrainingMethod):
    """L = -forget_weight CE(forget) + mismatch_weight CE(mismatched) + retain_weight KL(start || model)(retain).

    Mismatched rows are forget prompts with answers of retain rows, drawn in each step. All three are means over rows of means
    over answer tokens; ECO's release also takes the divergence over prompts and padding, which is not reproduced.
    """

    paper: ClassVar[str] = "Yao et al. 2023, arXiv 2310.10683; weights of ECO's baseline (Liu et al. 2024, arXiv 2406.07933)"
    formula: ClassVar[str] = "L = -e1 CE(forget) + e2 CE(forget prompts, retain answers) + e3 KL(start || model)(retain)"
    cost: ClassVar[str] = (
        "forward and backward of forget, mismatched and retain rows; hidden states of the retain answers and one copy of the head"
    )
    purpose: ClassVar[str] = "a baseline: mild ascent, with the answers of other questions in place of the true ones"
    weakness: ClassVar[str] = "answers become unrelated to the question"
    learning_rate: ClassVar[float] = 2e-5

    name: Literal["llmu"] = "llmu"
    forget_weight: float = Field(0.1, ge=0)
    """Factor of gradient ascent on the forget answers (e1)."""
    mismatch_weight: float = Field(1.0, ge=0)
    """Factor of the cross-entropy on other questions' answers (e2)."""
    retain_weight: float = Field(1.0, ge=0)
    """Factor of the divergence from the start model (e3)."""

    @property
    def row_sets(self) -> Mapping[str, RowSet]:
        return {"forget": FORGET, "mismatched": MISMATCHED, "retain": RowSet("retain", frozen=frozenset({"hidden"}))}

    def terms(self, model: nn.Module, batch: Batch) -> Iterator[Term]:
        yield Term("forget", -cross_entropy(model, batch.forget), self.forget_weight)
        yield Term("mismatched", cross_entropy(model, batch["mismatched"]), self.mismatch_weight, "mismatched")
        yield Term("retain", kl_to_start(model, batch, batch.retain), self.retain_weight, "retain")
