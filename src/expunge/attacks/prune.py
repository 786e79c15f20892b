"""Prune: removes weights that matter for the forgotten facts only, where unlearning may have put a refusal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks.base import AttackSpec, Found, Need, Preset, Scene, Way
from expunge.attacks.knowledge import Facts
from expunge.attacks.relearn import answer_loss
from expunge.attacks.target import Target
from expunge.data.encode import Encoded
from expunge.models.rounding import linear_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 32


class Prune(AttackSpec):
    """Set difference of SNIP scores: zeroes the weights among the top q of |w dL/dw| on forgotten questions that are not among
    the top p on kept facts. Scored on other facts than the gradient was taken on, each half in turn.

    L is the loss of the model's own greedy answers, which are a result of the unlearning.
    """

    paper: ClassVar[str] = "Wei et al. 2024 (arXiv 2402.05162); Lucki et al. 2024 (arXiv 2409.18025)"
    does: ClassVar[str] = "zeroes weights that matter to forgotten facts and not to kept ones"
    needs: ClassVar[frozenset[Need]] = frozenset({"weights", "retain"})
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            {
                "pairs": tuple(
                    (p, q) for p in (0.005, 0.01, 0.02, 0.03, 0.05) for q in (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07)
                )
            },
            "ethz-spylab: a grid of (p, q) pairs",
        ),
    }

    name: Literal["prune"] = "prune"
    pairs: tuple[tuple[float, float], ...] = Field(((0.01, 0.01), (0.02, 0.03), (0.05, 0.05)), min_length=1)
    """(p, q): shares of each matrix that are kept for utility, and taken for the forgotten facts."""

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        kept = _snip(target, target.encoded(scene.retain.examples[: 4 * BATCH]))
        said = _said(target, facts)
        values = {pair: np.full(len(facts), np.nan) for pair in self.pairs}
        for part in (0, 1):
            scored = list(range(part, len(facts), 2))
            shown = [row for i, row in enumerate(said) if i % 2 != part and row is not None]
            if not shown or not scored:
                continue
            forget = _snip(target, shown)
            for p, q in self.pairs:
                with target.restored() as model, torch.no_grad():
                    _zero(model, forget, kept, p, q)
                    values[p, q][scored] = target.recall(facts.some(scored))
        return Found(tuple(Way(f"p {p:g}, q {q:g}", found, {"p": p, "q": q}) for (p, q), found in values.items()))


def _said(target: Target, facts: Facts) -> list[Encoded | None]:
    """Returns the model's own greedy answers as rows; None if an answer is empty."""
    texts = target.ask(facts.questions)
    pairs = [(question, text) for question, text in zip(facts.questions, texts, strict=True) if text]
    rows = iter(target.encoder.encode_answers(pairs))
    return [next(rows) if text else None for text in texts]


def _snip(target: Target, rows: Sequence[Encoded]) -> list[Tensor]:
    """Computes |w dL/dw| of each linear layer's matrix, summed over batches."""
    with target.restored() as model:
        weights = [weight for weight, _ in linear_weights(model)]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        scores = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        for start in range(0, len(rows), BATCH):
            loss = answer_loss(model, rows[start : start + BATCH], target.encoder.pad_id)
            for score, weight, gradient in zip(scores, weights, torch.autograd.grad(loss, weights), strict=True):
                score += (weight.detach() * gradient).abs().float()
            target.spent["gradient_steps"] += 1
    return scores


def _zero(model: "PreTrainedModel", forget: Sequence[Tensor], kept: Sequence[Tensor], p: float, q: float) -> None:
    for (weight, _), mine, others in zip(linear_weights(model), forget, kept, strict=True):
        weight[_top(mine, q) & ~_top(others, p)] = 0


def _top(scores: Tensor, share: float) -> Tensor:
    """Marks the highest share of the scores."""
    count = int(share * scores.numel())
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    return scores >= scores.flatten().kthvalue(scores.numel() - count + 1).values
