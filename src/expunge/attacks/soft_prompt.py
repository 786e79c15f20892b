"""Soft prompt: optimizes embeddings between the question and the answer, for all questions in one batch."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from expunge.attacks.base import AttackSpec, Found, Need, Preset, Scene, Way
from expunge.attacks.knowledge import Facts, Floats
from expunge.attacks.target import Target
from expunge.evaluation.nucleus import Ids


class SoftPrompt(AttackSpec):
    """Optimizes soft prompts of two kinds, with the same number of tokens on the controls, because soft tokens can make a model
    say anything.

    `universal`: one prompt for all questions, optimized for the true answers of one half of the facts and scored on the other
    half, each half in turn. `per_question`: one prompt for each question, optimized for the answer's beginning up to the first
    word that counts, which the attacker can write without knowing the fact.
    """

    paper: ClassVar[str] = "Schwinn et al. 2024 (arXiv 2402.09063); that controls are needed: arXiv 2502.15836"
    does: ClassVar[str] = "optimizes embeddings between question and answer, per question and for all"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            {"tokens": 20, "steps": 100, "rate": 0.001, "signed": True},
            "llm-embedding-attack @7ebabc4: 20 embeddings, signed gradient step .001, 100 iterations",
        ),
    }

    name: Literal["soft_prompt"] = "soft_prompt"
    kinds: tuple[Literal["universal", "per_question"], ...] = ("universal", "per_question")
    tokens: int = Field(8, gt=0)
    """Number of optimized embeddings."""
    steps: int = Field(30, gt=0)
    rate: float = Field(0.3, gt=0)
    """Step size in units of the embeddings' root mean square; absolute if `signed`."""
    signed: bool = False
    """Use steps of the gradient's sign instead of Adam's."""

    def run(self, target: Target, facts: Facts, scene: Scene) -> Found:
        rows = target.encoded(facts.examples)
        prompts = [row.ids[: row.answer_start] for row in rows]
        ways = []
        if "universal" in self.kinds:
            values = np.full(len(facts), np.nan)
            for part in (0, 1):
                shown = [i for i in range(len(facts)) if i % 2 != part]
                scored = [i for i in range(len(facts)) if i % 2 == part]
                if shown and scored:
                    answers = [rows[i].ids[rows[i].answer_start :] for i in shown]
                    soft_1PD = self._optimized(target, [prompts[i] for i in shown], answers, scene.seed, universal=True)
                    values[scored] = _recall(target, facts.some(scored), [prompts[i] for i in scored], soft_1PD)
            ways.append(Way("universal", values))
        if "per_question" in self.kinds:
            begins = [
                row.ids[row.answer_start : row.answer_start + max(1, target.first(facts, i, row))] for i, row in enumerate(rows)
            ]
            soft_BPD = self._optimized(target, prompts, begins, scene.seed, universal=False)
            ways.append(Way("per question", _recall(target, facts, prompts, soft_BPD)))
        return Found(tuple(ways))

    def _optimized(self, target: Target, prompts: Sequence[Ids], answers: Sequence[Ids], seed: int, *, universal: bool) -> Tensor:
        """Returns [1 or B, tokens, width]: embeddings that maximize the probability of the answers."""
        model = target.model
        weight = target.embeddings_VD
        size = float(weight.float().square().mean().sqrt())
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(1 if universal else len(prompts), self.tokens, weight.shape[1], generator=generator) * size
        soft = (0.1 * start).to(weight.device, torch.float32).requires_grad_(True)
        optimizer = torch.optim.Adam([soft], lr=self.rate * size)
        labels = [([-100] * (len(p) + self.tokens)) + list(a) for p, a in zip(prompts, answers, strict=True)]
        with target.restored():
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            for _ in range(self.steps):
                embedded_BTD, mask_BT = _joined(target, prompts, soft, answers)
                logits_BTV = model(inputs_embeds=embedded_BTD, attention_mask=mask_BT, use_cache=False).logits
                width = embedded_BTD.shape[1]
                wanted_BT = torch.tensor([[-100] * (width - len(row)) + row for row in labels], device=weight.device)
                loss = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), wanted_BT[:, 1:].flatten())
                (gradient,) = torch.autograd.grad(loss if universal else loss * len(prompts), soft)
                target.spent["gradient_steps"] += 1
                if self.signed:
                    with torch.no_grad():
                        soft -= self.rate * gradient.sign()
                else:
                    soft.grad = gradient
                    optimizer.step()
        return soft.detach()


def _joined(target: Target, prompts: Sequence[Ids], soft: Tensor, after: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Returns [B, T, D] embeddings of prompt, soft tokens and what follows, padded on the left, and their mask."""
    embed = target.model.get_input_embeddings()
    width = max(len(p) + soft.shape[1] + len(a) for p, a in zip(prompts, after, strict=True))
    rows, masks = [], []
    for b, (prompt, answer) in enumerate(zip(prompts, after, strict=True)):
        left = width - len(prompt) - soft.shape[1] - len(answer)
        ids = torch.tensor([target.encoder.pad_id] * left + [*prompt, *answer], device=soft.device)
        embedded_TD = embed(ids)
        at = left + len(prompt)
        mine = soft[b if len(soft) > 1 else 0].to(embedded_TD.dtype)
        rows.append(torch.cat([embedded_TD[:at], mine, embedded_TD[at:]]))
        masks.append([0] * left + [1] * (width - left))
    return torch.stack(rows), torch.tensor(masks, device=soft.device)


@torch.no_grad()
def _recall(target: Target, facts: Facts, prompts: Sequence[Ids], soft: Tensor) -> Floats:
    """Computes [facts], the recall of the greedy answer after question and soft tokens."""
    answers: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    ends = set(target.end_ids)
    for _ in range(target.max_new_tokens):
        live = [b for b, over in enumerate(done) if not over]
        if not live:
            break
        mine = soft if len(soft) == 1 else soft[torch.tensor(live, device=soft.device)]
        embedded_BTD, mask_BT = _joined(target, [prompts[b] for b in live], mine, [tuple(answers[b]) for b in live])
        tokens = target.model(inputs_embeds=embedded_BTD, attention_mask=mask_BT, use_cache=False).logits[:, -1].argmax(dim=-1)
        for b, token in zip(live, tokens.tolist(), strict=True):
            done[b] = token in ends
            if not done[b]:
                answers[b].append(token)
    target.spent["queries"] += len(prompts)
    return target.read(facts, facts.questions, [target.text(ids) for ids in answers])
