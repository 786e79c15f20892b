"""Answers that share a beginning: the beginning goes through the model once, however many answers follow it.

Four answers to one question are four sequences with the same prompt. Two cases, each as few tokens as can be:

* one token each (letters): the model reads the same tokens for all of them, so one row gives every answer's logits;
* longer: the common beginning is computed once and its keys and values are kept; then only the ends follow, all in one row
  where no end sees another, or, for models that cannot be told so, in rows of their own with the keys and values repeated.

The log-probabilities are those of full passes, up to rounding (1e-5), whatever is batched with what. Where something hooks
into the model (a guard), longer answers get full passes: such a thing sees rows and positions, and must see real ones.

Shape suffixes: B groups of a batch, R ends of answers, P and T positions of beginnings and ends, S = P + T, N positions where
logits are computed, M pairs of such a position and a label, V vocabulary.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from expunge.data.encode import Encoded, collate, length_batches
from expunge.evaluation.metrics.base import TokenStats
from expunge.models.load import causal_model
from expunge.models.logprobs import Labelled, cached_logits, logits_at, token_logprobs

Ids = tuple[int, ...]
Answers = Sequence[Encoded]
"""The answers to one question, prompt included. The last token of a sequence is a label and is never read by the model."""


_TOLD = """
    llama mistral qwen2 qwen3 gemma gemma2 gemma3 gemma3_text phi phi3 olmo olmo2 olmo3 smollm3 granite gpt2 gpt_neox opt
"""
PACKED = frozenset(_TOLD.split())
"""Model types that can be told which position sees which: for them the ends of all answers to a question stand in one row.
BLOOM makes its distances of the padding mask, and a layer with a sliding window keeps its own mask."""


class _Group(NamedTuple):
    """Some answers to one question with the same beginning; `shared` is that of what the model reads: all but the last token."""

    rows: tuple[Encoded, ...]
    shared: Ids

    @property
    def ends(self) -> list[Ids]:
        """What is read after the common beginning, by each answer."""
        return [row.ids[len(self.shared) : -1] for row in self.rows]

    @property
    def first(self) -> int:
        """The first position in the common beginning that predicts a label of some answer."""
        return min(min(row.answer_start for row in self.rows) - 1, len(self.shared))


def score_answers(
    model: nn.Module, questions: Sequence[Answers], pad_id: int, *, max_tokens: int, max_rows: int
) -> list[list[TokenStats]]:
    """Statistics of the labelled tokens of every answer to every question, in order.

    max_tokens, max_rows: upper bounds of a batch, in tokens and questions. They change speed and memory, never a value.
    """
    whole = _hooked(model)
    groups, places = [], []
    for q, answers in enumerate(questions):
        for rows in _split(answers, whole=whole):
            groups.append(_group([answers[a] for a in rows]))
            places.append([(q, a) for a in rows])
    found: dict[tuple[int, int], TokenStats] = {}
    training = model.training
    model.eval()
    try:
        for wanted in (False, True):
            mine = [g for g, group in enumerate(groups) if any(group.ends) == wanted]
            costs = [len(groups[g].shared) + sum(map(len, groups[g].ends)) for g in mine]
            for batch in length_batches(costs, max_tokens, max_rows):
                chosen = [groups[mine[i]] for i in batch]
                stats = (_longer if wanted else _letters)(model, chosen, pad_id)
                found |= zip((place for i in batch for place in places[mine[i]]), stats, strict=True)
    finally:
        model.train(training)
    return [[found[q, a] for a in range(len(answers))] for q, answers in enumerate(questions)]


def _split(answers: Answers, *, whole: bool) -> list[list[int]]:
    """Indices of the answers that are computed together: those that read the same, and else those with a common beginning."""
    same: dict[Ids, list[int]] = {}
    for index, answer in enumerate(answers):
        same.setdefault(answer.ids[:-1], []).append(index)
    beginnings: dict[int, list[int]] = {}
    for ids, indices in same.items():
        beginnings.setdefault(indices[0] if whole else ids[0], []).extend(indices)
    return list(beginnings.values())


def _group(rows: Sequence[Encoded]) -> _Group:
    columns = zip(*(row.ids[:-1] for row in rows), strict=False)
    shared = takewhile(lambda column: len(set(column)) == 1, columns)
    return _Group(tuple(rows), tuple(column[0] for column in shared))


def _hooked(model: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.inference_mode()
def _letters(model: nn.Module, groups: Sequence[_Group], pad_id: int) -> list[TokenStats]:
    """Groups whose answers read the same tokens: one row each, labelled from the earliest answer on."""
    device = causal_model(model).device
    tokens = collate([Encoded(group.shared, len(group.shared), False) for group in groups], pad_id).to(device)
    wide = tokens.input_ids_BT.shape[1]
    index = [b * wide + p for b, group in enumerate(groups) for p in range(group.first, len(group.shared))]
    index_N = torch.tensor(index, dtype=torch.long, device=device)
    logits_NV = logits_at(model, tokens.input_ids_BT, tokens.attention_mask_BT, index_N)
    starts = np.cumsum([0, *(len(group.shared) - group.first for group in groups)])
    pairs = [
        [(start + t - 1 - group.first, row.ids[t]) for t in range(row.answer_start, len(row.ids))]
        for group, start in zip(groups, starts, strict=False)
        for row in group.rows
    ]
    return _stats(logits_NV, pairs)


@torch.inference_mode()
def _longer(model: nn.Module, groups: Sequence[_Group], pad_id: int) -> list[TokenStats]:
    """Groups whose answers go on differently: one pass over the beginnings, padded before, one over the ends, padded after."""
    device = causal_model(model).device
    beginnings = collate([Encoded(group.shared, len(group.shared), False) for group in groups], pad_id, side="left").to(device)
    wide = beginnings.input_ids_BT.shape[1]
    # Column of position p of a beginning in its padded row; logits from `first` on.
    asked = [
        [b * wide + wide - len(group.shared) + p for p in range(group.first, len(group.shared))] for b, group in enumerate(groups)
    ]
    index_N = torch.tensor([index for indices in asked for index in indices], dtype=torch.long, device=device)
    first = cached_logits(model, beginnings.input_ids_BT, beginnings.attention_mask_BT, index_N)

    follow = _packed if _packs(model, first.cache) else _repeated
    rest_NV = follow(model, groups, beginnings.attention_mask_BT, first.cache, pad_id)

    pairs = []
    row_start, end_start = 0, len(index_N)  # places in the joined logits: of the group's beginning, of the next end
    for group, indices in zip(groups, asked, strict=True):
        for row, end in zip(group.rows, group.ends, strict=True):
            place = [row_start + p - group.first for p in range(group.first, len(group.shared))]
            place += range(end_start, end_start + len(end))
            pairs.append([(place[t - 1 - group.first], row.ids[t]) for t in range(row.answer_start, len(row.ids))])
            end_start += len(end)
        row_start += len(indices)
    return _stats(torch.cat([first.logits_NV, rest_NV]), pairs)


def _packs(model: nn.Module, cache: Cache) -> bool:
    config = causal_model(model).config
    plain = all(type(layer) is DynamicLayer for layer in cache.layers)
    return plain and config.model_type in PACKED and config._attn_implementation in ("sdpa", "eager")


def _packed(model: nn.Module, groups: Sequence[_Group], before_BP: Tensor, cache: Cache, pad_id: int) -> Tensor:
    """Logits of all ends, in order; the ends of a group stand in one row, and none sees another."""
    rows = [tuple(token for end in group.ends for token in end) for group in groups]
    owners = [[a for a, end in enumerate(group.ends) for _ in end] for group in groups]
    depths = [[len(group.shared) + t for end in group.ends for t in range(len(end))] for group in groups]
    tails = collate([Encoded(row, len(row), False) for row in rows], pad_id).to(before_BP.device)
    owner_BT, position_BT = (torch.zeros_like(tails.input_ids_BT) for _ in range(2))
    for b, (owner, depth) in enumerate(zip(owners, depths, strict=True)):
        owner_BT[b, : len(owner)], position_BT[b, : len(depth)] = torch.tensor(owner), torch.tensor(depth)
    wide = owner_BT.shape[1]
    own_BTT = (owner_BT[:, :, None] == owner_BT[:, None, :]).tril()
    # Padding at the end of a row sees the beginning too, so that it has a softmax; nobody sees it.
    sees_BTS = torch.cat([before_BP[:, None, :].bool().expand(-1, wide, -1), own_BTT], dim=2)
    dtype = causal_model(model).dtype
    mask_B1TS = torch.zeros(sees_BTS.shape, dtype=dtype, device=sees_BTS.device).masked_fill_(~sees_BTS, torch.finfo(dtype).min)
    every_N = tails.attention_mask_BT.flatten().nonzero()[:, 0]
    return cached_logits(model, tails.input_ids_BT, mask_B1TS[:, None], every_N, cache, position_BT).logits_NV


def _repeated(model: nn.Module, groups: Sequence[_Group], before_BP: Tensor, cache: Cache, pad_id: int) -> Tensor:
    """The same with a row for each end, and the keys and values repeated: for models that cannot be told who sees whom."""
    ends = [(b, end) for b, group in enumerate(groups) for end in group.ends if end]
    parents_R = torch.tensor([b for b, _ in ends], dtype=torch.long, device=before_BP.device)
    tails = collate([Encoded(end, len(end), False) for _, end in ends], pad_id).to(before_BP.device)
    cache.reorder_cache(cast(torch.LongTensor, parents_R))
    mask_RS = torch.cat([before_BP[parents_R], tails.attention_mask_BT], dim=1)
    every_N = tails.attention_mask_BT.flatten().nonzero()[:, 0]
    return cached_logits(model, tails.input_ids_BT, mask_RS, every_N, cache).logits_NV


def _stats(logits_NV: Tensor, pairs: Sequence[Sequence[tuple[int, int]]]) -> list[TokenStats]:
    """One TokenStats for each list of (row of the logits, label)."""
    flat = torch.tensor([pair for row in pairs for pair in row], dtype=torch.long, device=logits_NV.device)
    where_M, labels_M = flat[:, 0], flat[:, 1]
    labelled = Labelled(logits_NV[where_M], labels_M, where_M, len(logits_NV))
    logp_M = token_logprobs(labelled).cpu().numpy()
    hit_M = (logits_NV.argmax(dim=-1)[where_M] == labels_M).cpu().numpy()
    stops = np.cumsum([len(row) for row in pairs])[:-1]
    return [TokenStats(logp, hit, False) for logp, hit in zip(np.split(logp_M, stops), np.split(hit_M, stops), strict=True)]
