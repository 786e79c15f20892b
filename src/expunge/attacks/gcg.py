"""GCG: searches for a suffix of tokens by the gradient of the loss at each of its positions."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from expunge.attacks.base import AttackSpec, Found, Need, Preset, Scene, Way
from expunge.attacks.knowledge import Facts, halves
from expunge.attacks.target import Target
from expunge.data.encode import Encoded, collate
from expunge.evaluation.nucleus import Ids
from expunge.models.logprobs import labelled_logits, sequence_mean, token_logprobs


class Gcg(AttackSpec):
    """Greedy coordinate gradient between question and answer.

    Each step takes, for every position of the suffix, the tokens whose embedding lowers the loss most to first order, tries
    `width` random single replacements among them, and keeps the best. `universal`: one suffix, optimized on one half of the
    facts and scored on the other. `per_question`: one each, optimized for the answer's beginning up to the first word that
    counts.
    """

    paper: ClassVar[str] = "Zou et al. 2023 (arXiv 2307.15043); nanoGCG"
    does: ClassVar[str] = "searches a suffix of tokens by gradient"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            {"kinds": ("universal", "per_question"), "tokens": 20, "steps": 250, "width": 512, "top_k": 256},
            "nanoGCG: 20 tokens, 250 steps, width 512, top-k 256, one replacement",
        ),
    }

    name: Literal["gcg"] = "gcg"
    kinds: tuple[Literal["universal", "per_question"], ...] = ("universal",)
    tokens: int = Field(4, gt=0)
    """Number of tokens of the suffix."""
    steps: int = Field(8, gt=0)
    width: int = Field(24, gt=0)
    """Number of replacements tried in a step."""
    top_k: int = Field(64, gt=0)
    """Number of tokens that a replacement is drawn from."""
    prompts: int = Field(8, gt=0)
    """Largest number of questions that a universal suffix is optimized on."""

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        rows = target.encoded(facts.examples)
        ways = []
        if "universal" in self.kinds:
            values = np.full(len(facts), np.nan)
            for shown, scored in halves(facts):
                suffix = self._searched(target, [rows[i] for i in shown[: self.prompts]], scene.seed)
                begun = [(*rows[i].ids[: rows[i].answer_start], *suffix) for i in scored]
                values[scored] = target.read(facts.some(scored), facts.some(scored).questions, target.go_on(begun))
            ways.append(Way("universal", values))
        if "per_question" in self.kinds:
            begun = []
            for i, row in enumerate(rows):
                stop = row.answer_start + max(1, target.first(facts, i, row))
                suffix = self._searched(target, [Encoded(row.ids[:stop], row.answer_start, False)], scene.seed)
                begun.append((*row.ids[: row.answer_start], *suffix))
            ways.append(Way("per question", target.read(facts, facts.questions, target.go_on(begun))))
        return Found(tuple(ways))

    def _searched(self, target: Target, rows: Sequence[Encoded], seed: int) -> Ids:
        """Returns the best suffix for all rows together."""
        generator = torch.Generator().manual_seed(seed)
        usable = _usable(target)
        suffix = [usable[int(k)] for k in torch.randint(len(usable), (self.tokens,), generator=generator)]
        best, lowest = tuple(suffix), float(_losses(target, rows, [tuple(suffix)])[0])
        allowed_V = torch.full((len(target.embeddings_VD),), torch.inf)
        allowed_V[torch.tensor(usable)] = 0.0
        for _ in range(self.steps):
            gradient_PV = _token_gradient(target, rows, best).cpu() + allowed_V
            top_PK = gradient_PV.topk(min(self.top_k, len(usable)), dim=1, largest=False).indices
            tried = []
            for _ in range(self.width):
                at = int(torch.randint(self.tokens, (1,), generator=generator))
                token = int(top_PK[at, int(torch.randint(top_PK.shape[1], (1,), generator=generator))])
                tried.append((*best[:at], token, *best[at + 1 :]))
            losses = _losses(target, rows, tried)
            target.spent["gradient_steps"] += 1
            target.spent["queries"] += len(tried) * len(rows)
            if float(losses.min()) < lowest:
                lowest, best = float(losses.min()), tried[int(losses.argmin())]
        return best


def _usable(target: Target) -> list[int]:
    """Returns the tokens that a user could type, without special ones."""
    special = set(target.tokenizer.all_special_ids)
    count = min(len(target.tokenizer), len(target.embeddings_VD))
    return [token for token in range(count) if token not in special]


def _with(rows: Sequence[Encoded], suffix: Ids) -> list[Encoded]:
    """Returns the rows with the suffix between prompt and answer."""
    return [
        Encoded((*r.ids[: r.answer_start], *suffix, *r.ids[r.answer_start :]), r.answer_start + len(suffix), r.has_end)
        for r in rows
    ]


@torch.no_grad()
def _losses(target: Target, rows: Sequence[Encoded], suffixes: Sequence[Ids], batch: int = 128) -> Tensor:
    """Computes [suffixes], the mean over rows of the answer's mean loss."""
    every = [row for suffix in suffixes for row in _with(rows, suffix)]
    found = []
    for start in range(0, len(every), batch):
        labelled = labelled_logits(
            target.model, collate(every[start : start + batch], target.encoder.pad_id).to(target.model.device)
        )
        found.append(-sequence_mean(token_logprobs(labelled), labelled.row_N, labelled.rows).cpu())
    return torch.cat(found).view(len(suffixes), len(rows)).mean(dim=1)


def _token_gradient(target: Target, rows: Sequence[Encoded], suffix: Ids) -> Tensor:
    """Computes [positions, vocabulary], the loss's gradient in the one-hot of each suffix token: embedding gradient times
    embeddings."""
    model = target.model
    batch = collate(_with(rows, suffix), target.encoder.pad_id).to(model.device)
    embedded_BTD = model.get_input_embeddings()(batch.input_ids_BT).detach().requires_grad_(True)
    logits_BTV = model(inputs_embeds=embedded_BTD, attention_mask=batch.attention_mask_BT, use_cache=False).logits
    loss = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), batch.labels_BT[:, 1:].flatten())
    (gradient_BTD,) = torch.autograd.grad(loss, embedded_BTD)
    places = [[row.answer_start + k for k in range(len(suffix))] for row in rows]
    at_BP = torch.tensor(places, device=gradient_BTD.device)
    mine_BPD = gradient_BTD.gather(1, at_BP[:, :, None].expand(-1, -1, gradient_BTD.shape[2]))
    gradient_PV: Tensor = mine_BPD.sum(dim=0) @ target.embeddings_VD.T
    return gradient_PV.float()
