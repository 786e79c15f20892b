"""Decodes one batch greedily, each row at its own length and with guesses of the tokens that come next (`drafts`)."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import nn

from expunge.data.encode import length_batches
from expunge.evaluation.decode import Begun
from expunge.evaluation.drafts import MOST, Drafts
from expunge.evaluation.nucleus import Ids
from expunge.evaluation.row_cache import RowCache

READ = 2048
"""Tokens of prompts that are read at a time."""


@torch.inference_mode()
def decode_rows(
    model: nn.Module,
    begun: Sequence[Begun],
    *,
    drafts: Drafts,
    end_ids: Collection[int],
    stopped: Callable[[Ids], bool] | None,
) -> None:
    """Completes every answer, in place, with the first of the most probable tokens. Tokens already in `answer` are read like the
    prompt.

    drafts  knows texts of the same model, these rows among them, and learns what is written
    """
    rows = [row for row in begun if not row.done]
    if not rows:
        return
    whole = [(*row.prompt, *row.answer) for row in rows]
    cache = RowCache(model, len(rows), max(map(len, whole)))
    order, first = list[int](), list[tuple[int, bool]]()
    for batch in length_batches([len(ids) for ids in whole], READ, len(rows)):
        order += batch
        first += _best(cache.begin([whole[i] for i in batch], [rows[i].under for i in batch]))
    rows = [rows[i] for i in order]
    texts = [list(whole[i]) for i in order]
    for row, text, (token, finite) in zip(rows, texts, first, strict=True):
        _take(row, text, token, finite, end_ids, stopped, drafts)
    while True:
        live = [b for b, row in enumerate(rows) if not row.done]
        if not live:
            return
        if len(live) < len(rows):
            kept = cache.only(live)
            rows, texts = [rows[b] for b in kept], [texts[b] for b in kept]
        guesses = [drafts.guess(text, min(MOST, row.room - 1)) for row, text in zip(rows, texts, strict=True)]
        read = [[text[-1], *guess.tokens[: guess.worth]] for text, guess in zip(texts, guesses, strict=True)]
        found = _best(cache.go_on(read))
        kept, start = [], 0
        for row, text, guess in zip(rows, texts, guesses, strict=True):
            mine = found[start : start + 1 + guess.worth]
            start += len(mine)
            right = drafts.learn(guess, [token for token, _ in mine])
            for token, finite in mine[: right + 1]:
                _take(row, text, token, finite, end_ids, stopped, drafts)
            kept.append(1 + right)
        cache.keep(kept)


def _take(
    row: Begun,
    text: list[int],
    token: int,
    finite: bool,
    end_ids: Collection[int],
    stopped: Callable[[Ids], bool] | None,
    drafts: Drafts,
) -> None:
    """Adds a token to an answer that is not complete, or completes it."""
    if row.done:
        return
    if not finite:
        row.broken = row.done = True
        return
    row.take(token, end_ids, stopped)
    text.append(token)
    drafts.add(text, len(text) - 1)


def _best(logits_NV: torch.Tensor) -> list[tuple[int, bool]]:
    """Returns the most probable token after each, the first of equal ones, and whether the logits are numbers."""
    top_N, token_N = logits_NV.max(dim=-1)
    return list(zip(token_N.tolist(), top_N.isfinite().tolist(), strict=True))
