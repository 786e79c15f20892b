"""Decodes one batch greedily, each row at its own length and with guesses of the tokens that come next (`drafts`)."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import nn

from expunge.data.encode import length_batches
from expunge.evaluation.decode import Begun
from expunge.evaluation.drafts import Drafts, Trust, share
from expunge.evaluation.nucleus import Ids
from expunge.evaluation.row_cache import RowCache

READ = 2048
"""Tokens of prompts that are read at a time."""


@torch.inference_mode()
def decode_rows(
    model: nn.Module,
    begun: Sequence[Begun],
    *,
    end_ids: Collection[int],
    stopped: Callable[[Ids], bool] | None,
) -> None:
    """Completes every answer, in place, with the first of the most probable tokens. Tokens already in `answer` are read like the
    prompt."""
    rows = [row for row in begun if not row.done]
    if not rows:
        return
    cost, drafts = share(model), Drafts()
    cache = RowCache(model, len(rows), max(len(row.prompt) + len(row.answer) + row.room for row in rows))
    whole = [(*row.prompt, *row.answer) for row in rows]
    order, first = list[int](), list[tuple[int, bool]]()
    for batch in length_batches([len(ids) for ids in whole], READ, len(rows)):
        order += batch
        first += _best(cache.begin([whole[i] for i in batch], [rows[i].under for i in batch]))
    rows = [rows[i] for i in order]
    texts = [list(whole[i]) for i in order]
    trusts = [Trust(cost) for _ in rows]
    for row, text, (token, finite) in zip(rows, texts, first, strict=True):
        drafts.add(text)
        _take(row, text, token, finite, end_ids, stopped, drafts)
    while True:
        live = [b for b, row in enumerate(rows) if not row.done]
        if not live:
            return
        if len(live) < len(rows):
            kept = cache.only(live)
            rows, texts, trusts = [rows[b] for b in kept], [texts[b] for b in kept], [trusts[b] for b in kept]
        counts = [min(trust.count(), row.room - 1) for row, trust in zip(rows, trusts, strict=True)]
        guesses = [drafts.guess(text, max(1, count)) for text, count in zip(texts, counts, strict=True)]
        read = [guess[:count] for guess, count in zip(guesses, counts, strict=True)]
        found = _best(cache.go_on([[text[-1], *some] for text, some in zip(texts, read, strict=True)]))
        kept, start = [], 0
        for row, text, trust, guess, some in zip(rows, texts, trusts, guesses, read, strict=True):
            mine = found[start : start + 1 + len(some)]
            start += len(mine)
            right = 0
            while right < len(some) and some[right] == mine[right][0]:
                right += 1
            if guess:
                trust.learn(guess[0] == mine[0][0], right)
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
