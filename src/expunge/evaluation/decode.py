"""Decodes one batch token by token, greedy or sampled, with a preallocated cache; finished rows are removed.

Shape suffixes: B unfinished rows, S positions so far (with padding before a row's first token), V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from expunge.data.encode import Encoded, collate
from expunge.evaluation.drawing import draw
from expunge.evaluation.nucleus import Ids, Nucleus
from expunge.evaluation.shortcuts import empty_slots
from expunge.models.load import causal_model
from expunge.models.logprobs import cached_logits

LEFT = 0.75
"""Finished rows are removed from the batch once at most this share of it is unfinished, since removing copies the cache."""


@dataclass
class Begun:
    """An answer in progress."""

    prompt: Ids
    draw: int = 0
    """Index among several sampled answers to the prompt."""
    answer: list[int] = field(default_factory=list)
    room: int = 0
    """Number of tokens that may still be written."""
    broken: bool = False
    """The model's logits are not numbers, so that its answer is unknown."""
    done: bool = False
    under: object = None
    """How the prompt is read (`generate.generate`)."""

    def take(self, token: int, end_ids: Collection[int], stopped: Callable[[Ids], bool] | None) -> None:
        """Adds a token, or ends the answer at an end token, a stop text, or the maximum length."""
        if self.done:
            return
        if token in end_ids or self.room <= 0:
            self.done = True
            return
        self.answer.append(token)
        self.room -= 1
        self.done = self.room <= 0 or (stopped is not None and stopped(tuple(self.answer)))

    def take_all(self, tokens: Ids, end_ids: Collection[int], stopped: Callable[[Ids], bool] | None) -> None:
        """Adds tokens, up to the end of the answer."""
        for token in tokens:
            self.take(token, end_ids, stopped)


@torch.inference_mode()
def decode(
    model: nn.Module,
    begun: Sequence[Begun],
    *,
    pad_id: int,
    end_ids: Collection[int],
    stopped: Callable[[Ids], bool] | None,
    nucleus: Nucleus | None,
) -> None:
    """Completes every answer, in place. Tokens already in `answer` are read like the prompt.

    A token is the first of the most probable ones, or what `nucleus` draws for the row, which depends on its prompt only.
    """
    rows = [row for row in begun if not row.done]
    if not rows:
        return
    device = causal_model(model).device
    uniforms = {id(row): nucleus.uniforms(row.prompt, row.draw, len(row.answer) + row.room) for row in rows} if nucleus else {}
    tokens = collate([Encoded((*row.prompt, *row.answer), 1, False) for row in rows], pad_id, side="left").to(device)
    width = tokens.input_ids_BT.shape[1]
    most = max(row.room for row in rows)
    mask_BS = torch.ones(len(rows), width + most, dtype=torch.long, device=device)
    mask_BS[:, :width] = tokens.attention_mask_BT
    ids_BT, last_B = tokens.input_ids_BT, torch.arange(1, len(rows) + 1, device=device) * width - 1
    cache = empty_slots(width + most)
    for past in range(width, width + most + 1):
        logits_BV = cached_logits(model, ids_BT, mask_BS[:, :past], last_B, cache).logits_NV
        top_B, token_B = logits_BV.max(dim=-1)
        if nucleus is not None:
            u_B1 = torch.tensor([[uniforms[id(row)][len(row.answer)]] for row in rows], dtype=torch.float64)
            token_B = draw(nucleus, logits_BV, u_B1)
        for row, token, finite in zip(rows, token_B.tolist(), top_B.isfinite().tolist(), strict=True):
            if not finite and not row.done:
                row.broken = row.done = True
            row.take(token, end_ids, stopped)
        live = [b for b, row in enumerate(rows) if not row.done]
        if not live:
            return
        if len(live) <= LEFT * len(rows):
            live_B = torch.tensor(live, device=device)
            cache.batch_select_indices(live_B)
            rows, mask_BS, token_B = [rows[b] for b in live], mask_BS[live_B], token_B[live_B]
        ids_BT, last_B = token_B[:, None], torch.arange(len(rows), device=device)


def tokens_of(row: Begun) -> Ids | None:
    """Returns the answer, or None if the logits were not numbers."""
    return None if row.broken else tuple(row.answer)


def logits_are_finite(scores_BV: Tensor) -> Tensor:
    """Returns whether the largest logit of each row is a number, [B]; it is NaN as soon as one of the logits is."""
    return scores_BV.max(dim=-1).values.isfinite()
