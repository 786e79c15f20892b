"""Probe: reads facts from hidden states, layer by layer, with logit lens, tuned lens and linear probe."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks.base import AttackSpec, Found, Need, Preset, Scene, Way
from expunge.attacks.knowledge import Facts, Floats
from expunge.attacks.target import Target
from expunge.data.encode import Encoded, collate
from expunge.models.blocks import Blocks, blocks_of
from expunge.models.hooks import capture
from expunge.models.logprobs import output_head

if TYPE_CHECKING:
    from expunge.evaluation.nucleus import Ids

BATCH = 64
LEAST = 4
"""With fewer candidates, all known answers are candidates."""


class Probe(AttackSpec):
    """Reads hidden states where the fact's first token would be predicted, after question and the answer's beginning.

    The right token is ranked among candidates: the first tokens of all known answers that follow the same word. Three readers a
    layer: the model's own head (logit lens); the head after an affine map onto the last layer (tuned lens) and a ridge
    classifier (linear probe), both fitted on kept facts. The value of a fact is the share of other candidates that rank lower:
    0.5 for a guess, 1 for knowledge; what the model's own output gives after the beginning is noted (`at_the_output`).
    """

    paper: ClassVar[str] = "nostalgebraist 2020; Belrose et al. 2023 (arXiv 2303.08112); Lucki et al. 2024 (arXiv 2409.18025)"
    does: ClassVar[str] = "reads facts off hidden states: logit lens, tuned lens, linear probe"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "retain"})
    presets: ClassVar[Mapping[str, Preset]] = {"paper": Preset({"fitted_on": 2000}, "every layer, all readers")}

    name: Literal["probe"] = "probe"
    readers: tuple[Literal["lens", "tuned", "linear"], ...] = ("lens", "tuned", "linear")
    fitted_on: int = Field(300, gt=1)
    """Largest number of retained facts that the tuned lens and the linear probe are fitted on."""
    ridge: float = Field(1e-2, gt=0)
    """Weight of the penalty, relative to the mean square of the features."""

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        places = blocks_of(target.model)
        fitting = scene.retain.some(range(min(self.fitted_on, len(scene.retain))))
        asked, right = _asked(target, facts)
        shown, classes = _asked(target, fitting)
        candidates = _candidates([*asked, *shown], [*right, *classes], asked)
        mine_LND, theirs_LND = last_hidden(target, places, asked), last_hidden(target, places, shown)
        ways = []
        for layer in range(places.count):
            for reader in self.readers:
                scores_NV = self._read(places, reader, mine_LND[layer], theirs_LND, layer, classes)
                values = _percentiles(scores_NV, right, candidates)
                ways.append(Way(f"{reader}, layer {layer}", values, {"reader": reader, "layer": layer}))
        said = _percentiles(read_by_head(places, mine_LND[-1]), right, candidates)
        note = {"at_the_output": round(float(np.nanmean(said)), 4)} if np.isfinite(said).any() else {}
        return Found(tuple(ways), metric="percentile", before=np.full(len(facts), 0.5), note=note)

    def _read(
        self, places: Blocks, reader: str, hidden_ND: Tensor, fitting_LND: Tensor, layer: int, classes: Sequence[int]
    ) -> Tensor:
        """Computes [N, V] scores of every token."""
        if reader == "lens":
            return read_by_head(places, hidden_ND)
        if reader == "tuned":
            return read_by_head(places, Ridge(fitting_LND[layer], fitting_LND[-1], self.ridge)(hidden_ND))
        distinct = sorted(set(classes))
        onehot_NC = torch.zeros(len(classes), len(distinct))
        onehot_NC[torch.arange(len(classes)), torch.tensor([distinct.index(c) for c in classes])] = 1.0
        scores_NC = Ridge(fitting_LND[layer], onehot_NC, self.ridge)(hidden_ND)
        head_VD = output_head(places.root).weight
        assert isinstance(head_VD, Tensor)
        scores_NV = torch.full((len(hidden_ND), len(head_VD)), -torch.inf)
        scores_NV[:, torch.tensor(distinct)] = scores_NC
        return scores_NV


class Ridge:
    """The affine map x -> (x - mean_x) W + mean_y that minimizes |XW - Y|^2 + ridge n mean(x^2) |W|^2, in float64."""

    def __init__(self, x_ND: Tensor, y_NE: Tensor, ridge: float) -> None:
        x, y = x_ND.double(), y_NE.double()
        self.mean_x, self.mean_y = x.mean(dim=0), y.mean(dim=0)
        x, y = x - self.mean_x, y - self.mean_y
        penalty = ridge * len(x) * float(x.square().mean().clamp(min=1e-12))
        self.weight_DE = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=torch.float64), x.T @ y)

    def __call__(self, x_ND: Tensor) -> Tensor:
        mapped_NE: Tensor = (x_ND.double() - self.mean_x) @ self.weight_DE + self.mean_y
        return mapped_NE.float()


def _asked(target: Target, facts: Facts) -> "tuple[list[Ids], list[int]]":
    """Returns question and the answer's beginning of each fact, and the next token."""
    rows = target.encoded(facts.examples) if len(facts) else []
    firsts = [row.answer_start + target.first(facts, i, row) for i, row in enumerate(rows)]
    return [row.ids[:first] for row, first in zip(rows, firsts, strict=True)], [
        row.ids[first] for row, first in zip(rows, firsts, strict=True)
    ]


def _candidates(known: "Sequence[Ids]", tokens: Sequence[int], asked: "Sequence[Ids]") -> list[list[int]]:
    """Returns, for each beginning, the tokens that follow the same last token somewhere; all tokens if those are too few."""
    after: dict[int, set[int]] = {}
    for begin, token in zip(known, tokens, strict=True):
        after.setdefault(begin[-1], set()).add(token)
    everything = sorted(set(tokens))
    return [sorted(found) if len(found := after[begin[-1]]) >= LEAST else everything for begin in asked]


@torch.no_grad()
def last_hidden(target: Target, places: Blocks, rows: "Sequence[Ids]") -> Tensor:
    """Computes [layers, N, width], float32 on the CPU: the residual stream after each block at the last token of each row."""
    found = []
    sites = {layer: places.hidden(layer) for layer in range(places.count)}
    for start in range(0, len(rows), BATCH):
        batch = collate([Encoded(row, len(row), False) for row in rows[start : start + BATCH]], target.encoder.pad_id)
        batch = batch.to(target.model.device)
        last_B = batch.attention_mask_BT.sum(dim=1) - 1
        with capture(target.model, sites) as seen:
            target.model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
        picked = [seen[layer][torch.arange(len(last_B)), last_B].float().cpu() for layer in range(places.count)]
        found.append(torch.stack(picked))
    target.spent["queries"] += len(rows)
    return torch.cat(found, dim=1)


@torch.no_grad()
def read_by_head(places: Blocks, hidden_ND: Tensor) -> Tensor:
    """Computes [N, V], the model's last norm and head applied to hidden states."""
    head = output_head(places.root)
    weight = next(head.parameters())
    x = hidden_ND.to(weight.device, weight.dtype)
    if places.norm is not None:
        x = places.module(places.norm)(x)
    return head(x).float().cpu()  # type: ignore[no-any-return]


def _percentiles(scores_NV: Tensor, right: Sequence[int], candidates: Sequence[Sequence[int]]) -> Floats:
    """Computes [N], the share of the other candidates with a lower score than the right token, ties counted half; NaN if the
    right token was never a class of the reader, or is the only candidate."""
    found = np.full(len(right), np.nan)
    for i, (token, mine) in enumerate(zip(right, candidates, strict=True)):
        others = torch.tensor([c for c in mine if c != token], dtype=torch.long)
        own = scores_NV[i, token]
        if len(others) and torch.isfinite(own):
            rest = scores_NV[i, others]
            found[i] = float((rest < own).float().mean() + 0.5 * (rest == own).float().mean())
    return found
