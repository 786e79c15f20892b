"""Scores several answers to one question while computing their common beginning only once.

Four answers to one question are four sequences with the same prompt. On a CPU, most models take many questions in one row without
padding (`packs`), where every token of a question is read once (`trees`). Elsewhere there are four cases:

* one token each (letters), or a single sequence: the model reads the same tokens for all of them, so that one row gives the
  logits of every answer;
* longer: one row holds the common beginning and then the ends of all answers, which do not attend to each other. One pass without
  a cache: a tenth to a fifth less time than a second pass over the ends;
* longer, for models that take no such attention mask, for very long prompts, and for ends so long that most of what they would
  attend to in one row is hidden from them: the beginning once, and the ends in separate rows that continue from its repeated
  key-value cache; one pass reads the beginnings of many questions, others their ends, sorted by length;
* longer, for models where neither gives the right values (`shortcuts`), or for models with hooks (a guard needs real rows): full
  passes.

Where some answers to a question go on alike, they are a group of their own if that leaves fewer tokens (`beginnings`).

The log-probabilities equal those of full passes up to rounding (1e-5), in any batch.

Shape suffixes: B groups of a batch, R ends of answers, P and T positions of beginnings and of what the model reads, S = P + T,
N positions where logits are computed, M pairs of such a position and a label, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import partial
from itertools import accumulate
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache

from expunge.data.encode import Encoded, Tokens, collate, length_batches
from expunge.devices import out_of_memory
from expunge.evaluation.beginnings import Answers, Group, Ids, beginnings, group_of
from expunge.evaluation.changed_prompts import settings_of_rows
from expunge.evaluation.packs import packs, read_pack, statistics_at
from expunge.evaluation.processes import dealt
from expunge.evaluation.shortcuts import Shortcuts, sees, shortcuts_of
from expunge.evaluation.token_stats import TokenStats
from expunge.evaluation.trees import Tree, tree_of
from expunge.guarding.session import rows_under
from expunge.models.limits import check_embedded, padding, text_config
from expunge.models.load import causal_model
from expunge.models.logprobs import cached_logits, logits_at

MASKED = 8192
"""Longest row of this kind: its attention mask grows with the square of its length."""


SPAN = 8
"""Most tokens read together with one pass over beginnings, the ends in their passes included, in batches."""


WIDTH = 8
"""Rows are padded to a multiple of it if padding changes no value."""


Way = Callable[..., list[TokenStats]]
"""Model, groups or trees, and pad id -> statistics of every answer of every group, in order."""


def score_answers(
    model: nn.Module,
    questions: Sequence[Answers],
    pad_id: int,
    *,
    max_tokens: int,
    max_rows: int,
    max_logits: int | None = None,
    distribution: bool = False,
    settings: Sequence[object] | None = None,
) -> list[list[TokenStats]]:
    """Returns statistics of the labelled tokens of every answer to every question, in order; with several processes, each
    computes its batches.

    max_tokens, max_rows   upper bounds of a batch, in tokens and questions. They change speed and memory, never a value
    max_logits             upper bound of the tokens of all ends in one pass, which have logits; default: max_tokens
    distribution           with `TokenStats.distribution`, which takes a few more passes over the logits
    settings               how the prompt of each question is read: under a setting of the attached guard
                           (`guarding.session.rows_under`), or changed (`changed_prompts`, where the model takes packs)

    Raises ExpungeError if a token has no embedding, or if a single row does not fit into memory.
    """
    check_embedded(model, (answer.ids for answers in questions for answer in answers))
    pad_id, can = padding(model, pad_id), shortcuts_of(model)
    parts, places = list[tuple[list[Encoded], object]](), list[list[tuple[int, int]]]()
    for q, answers in enumerate(questions):
        for rows in beginnings(answers, can):
            parts.append(([answers[a] for a in rows], settings[q] if settings is not None else None))
            places.append([(q, a) for a in rows])
    groups: Sequence[Group | Tree]
    if can.packed:
        groups = trees = [tree_of(rows, under) for rows, under in parts]
        together = packs(trees, max_tokens, max_rows, max_logits or max_tokens, can.longest)
        batches: list[tuple[Way, list[int]]] = [(read_pack, pack) for pack in together]
    else:
        groups = plain = [group_of(rows, under) for rows, under in parts]
        batches = _padded_batches(model, plain, can, max_tokens, max_rows, max_logits)
    training = model.training
    model.eval()
    try:
        results = dealt(model, batches, partial(_batch, model, groups, pad_id, distribution))
    finally:
        model.train(training)
    found: dict[tuple[int, int], TokenStats] = {}
    for (_, chosen), stats in zip(batches, results, strict=True):
        found |= zip((place for g in chosen for place in places[g]), stats, strict=True)
    return [[found[q, a] for a in range(len(answers))] for q, answers in enumerate(questions)]


def _padded_batches(
    model: nn.Module, groups: Sequence[Group], can: Shortcuts, max_tokens: int, max_rows: int, max_logits: int | None
) -> list[tuple[Way, list[int]]]:
    """Returns the batches of padded rows, and how each is computed."""
    costs = [group.tokens for group in groups]
    if can.padding:
        costs = [-(-cost // WIDTH) * WIDTH for cost in costs]
    wide = text_config(model).hidden_size
    ways: dict[Way, list[int]] = {_letters: [], _tree: []}
    begun: list[int] = []
    for g, group in enumerate(groups):
        tree = can.tree and (not can.cache or (costs[g] <= MASKED and _pays_in_one_row(group, wide)))
        (ways[_letters] if not group.more else ways[_tree] if tree else begun).append(g)
    batches: list[tuple[Way, list[int]]] = [
        (way, [mine[i] for i in batch])
        for way, mine in ways.items()
        for batch in batches_of([costs[g] for g in mine], max_tokens, max_rows, can)
    ]
    repeated = partial(_repeated, max_tokens=min(max_tokens, max_logits or max_tokens))
    for batch in batches_of([len(groups[g].shared) for g in begun], max_tokens, max_rows, can):
        batches += [(repeated, few) for few in _spans([begun[i] for i in batch], costs, SPAN * max_tokens)]
    return batches


def batches_of(lengths: Sequence[int], max_tokens: int, max_rows: int, can: Shortcuts) -> list[list[int]]:
    """Groups row indices into batches of similar length (`length_batches`): of equal length if padding changes values, and a
    row alone if it is so long that it would change the others."""
    kinds: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        lonely = can.longest is not None and length > can.longest
        kinds.setdefault(-row - 1 if lonely else 0 if can.padding else length, []).append(row)
    return [
        [rows[i] for i in batch]
        for _, rows in sorted(kinds.items(), reverse=True)
        for batch in length_batches([lengths[row] for row in rows], max_tokens, max_rows)
    ]


def _spans(chosen: Sequence[int], costs: Sequence[int], most: int) -> list[list[int]]:
    """Cuts a batch of groups into runs of at most so many tokens; a larger group is a run of its own."""
    found, total = list[list[int]](), most
    for g in chosen:
        if total + costs[g] > most:
            found, total = [*found, []], 0
        found[-1].append(g)
        total += costs[g]
    return found


def _batch(
    model: nn.Module,
    groups: Sequence[Group | Tree],
    pad_id: int,
    distribution: bool,
    batch: tuple[Way, Sequence[int]],
) -> list[TokenStats]:
    """Computes the batch, or its halves one after the other if it does not fit into memory."""
    way, chosen = batch
    mine = [groups[g] for g in chosen]
    under = None if way is read_pack else settings_of_rows([group.under for group in mine])
    try:
        with torch.inference_mode(), rows_under(under):
            return way(model, mine, pad_id, distribution)
    except torch.OutOfMemoryError as error:
        if len(chosen) == 1:
            raise out_of_memory(f"with one row of {groups[chosen[0]].tokens} tokens", "take a smaller --max-length") from error
    torch.cuda.empty_cache()
    half = len(chosen) // 2
    return [
        stats for part in (chosen[:half], chosen[half:]) for stats in _batch(model, groups, pad_id, distribution, (way, part))
    ]


def _pays_in_one_row(group: Group, wide: int) -> bool:
    """Returns whether one row with all ends costs less than a second pass over them.

    In one row every token is multiplied with every other, also where the mask then hides it: 4 D operations a pair, where a
    token's matrix products take about 24 D^2. A second pass pads the ends, which is about a seventh of these products.
    """
    begun, whole = len(group.shared), len(group.shared) + group.more
    needed = begun**2 + sum(len(end) * (begun + len(end)) for end in group.ends)
    return whole**2 - needed <= wide * whole


def _letters(model: nn.Module, groups: Sequence[Group], pad_id: int, distribution: bool) -> list[TokenStats]:
    """Computes groups whose answers read the same tokens: one row each, labelled from the earliest answer on."""
    device = causal_model(model).device
    rows = [group.shared for group in groups]
    if shortcuts_of(model).padding:
        tokens = _even(rows, pad_id).to(device)
    else:
        tokens = collate([Encoded(row, len(row), False) for row in rows], pad_id).to(device)
    wide = tokens.input_ids_BT.shape[1]
    index = [b * wide + p for b, group in enumerate(groups) for p in range(group.first, len(group.shared))]
    index_N = torch.tensor(index, dtype=torch.long, device=device)
    logits_NV = logits_at(model, tokens.input_ids_BT, tokens.attention_mask_BT, index_N)
    starts = _starts(group.begun for group in groups)
    return _stats(logits_NV, _pairs(groups, starts, starts), distribution)


def _even(rows: Sequence[Ids], pad_id: int) -> Tokens:
    """Pads rows to a multiple of `WIDTH`.

    Sums over positions then have the same order in every batch, so that a row has the same value, bit for bit on most CPUs, in
    any batch.
    """
    width = -(-max(map(len, rows)) // WIDTH) * WIDTH
    filler = Encoded((pad_id,) * width, width, False)
    tokens = collate([*(Encoded(row, len(row), False) for row in rows), filler], pad_id)
    return Tokens(tokens.input_ids_BT[:-1], tokens.attention_mask_BT[:-1], tokens.labels_BT[:-1])


def _tree(model: nn.Module, groups: Sequence[Group], pad_id: int, distribution: bool) -> list[TokenStats]:
    """Computes one row per group: its beginning, then all ends, each of which attends to the beginning and itself."""
    device = causal_model(model).device
    rows = [(*group.shared, *(token for end in group.ends for token in end)) for group in groups]
    tokens = _even(rows, pad_id)
    wide = tokens.input_ids_BT.shape[1]
    owner_BT, position_BT = (torch.zeros_like(tokens.input_ids_BT) for _ in range(2))
    for b, group in enumerate(groups):
        ends, begun = group.ends, len(group.shared)
        owners = [*[0] * begun, *(a for a, end in enumerate(ends, start=1) for _ in end)]
        depths = [*range(begun), *(begun + t for end in ends for t in range(len(end)))]
        # Padding counts as of the beginning: it sees that, so that it has a softmax, and nobody sees it.
        owner_BT[b, : len(owners)], position_BT[b, : len(depths)] = torch.tensor(owners), torch.tensor(depths)
    index = [b * wide + p for b, group in enumerate(groups) for p in range(group.first, len(rows[b]))]
    index_N = torch.tensor(index, dtype=torch.long, device=device)
    logits_NV = logits_at(
        model, tokens.input_ids_BT.to(device), sees(owner_BT.to(device), model), index_N, position_BT.to(device)
    )
    starts = _starts(group.begun + group.more for group in groups)
    return _stats(
        logits_NV, _pairs(groups, starts, [start + g.begun for start, g in zip(starts, groups, strict=True)]), distribution
    )


def _repeated(model: nn.Module, groups: Sequence[Group], pad_id: int, distribution: bool, *, max_tokens: int) -> list[TokenStats]:
    """Computes one pass over the beginnings, padded on the left; then passes over the ends, padded on the right, each with its
    group's cache."""
    device = causal_model(model).device
    begun = collate([Encoded(group.shared, len(group.shared), False) for group in groups], pad_id, side="left").to(device)
    wide = begun.input_ids_BT.shape[1]
    # Column of position p of a beginning in its padded row; logits from `first` on.
    index = [b * wide + wide - len(g.shared) + p for b, g in enumerate(groups) for p in range(g.first, len(g.shared))]
    index_N = torch.tensor(index, dtype=torch.long, device=device)
    logits_NV, cache = cached_logits(model, begun.input_ids_BT, begun.attention_mask_BT, index_N)
    starts = _starts(group.begun for group in groups)
    answers = [(row, end, b) for b, group in enumerate(groups) for row, end in zip(group.rows, group.ends, strict=True)]
    found = _stats(logits_NV, [_pairs_begun(groups[b], row, starts[b]) for row, _, b in answers], distribution)
    del logits_NV

    # Each end has the columns of its beginning in its cache, too; they take less memory than what is computed for a token.
    going = [i for i, (_, end, _) in enumerate(answers) if end]
    costs = [max(len(answers[i][1]), -(-(wide + len(answers[i][1])) // 4)) for i in going]
    for batch in length_batches(costs, max_tokens, len(costs)):
        some = [going[i] for i in batch]
        ends, parents = [answers[i][1] for i in some], [answers[i][2] for i in some]
        tails = collate([Encoded(end, len(end), False) for end in ends], pad_id).to(device)
        parents_R = torch.tensor(parents, dtype=torch.long, device=device)
        mask_RS = torch.cat([begun.attention_mask_BT[parents_R], tails.attention_mask_BT], dim=1)
        every_N = tails.attention_mask_BT.flatten().nonzero()[:, 0]
        rest = cached_logits(model, tails.input_ids_BT, mask_RS, every_N, _rows_of(cache, parents_R))
        pairs = [_pairs_end(answers[i][0], end, start) for i, end, start in zip(some, ends, _starts(map(len, ends)), strict=True)]
        for i, stats in zip(some, _stats(rest.logits_NV, pairs, distribution), strict=True):
            found[i] = found[i].then(stats)
    return found


def _rows_of(cache: Cache, parents_R: Tensor) -> Cache:
    """Returns a cache of these rows; the one that it is made from stays as it is."""
    chosen = copy(cache)
    chosen.layers = [copy(layer) for layer in cache.layers]
    chosen.reorder_cache(cast(torch.LongTensor, parents_R))
    return chosen


def _pairs(groups: Sequence[Group], starts: Sequence[int], ends: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Returns for each answer of each group: (row of the logits, label) of its labelled tokens.

    starts, ends  rows at which the logits of each group's beginning (from `first` on) and of its ends start
    """
    pairs = []
    for group, start, at in zip(groups, starts, ends, strict=True):
        for row, end in zip(group.rows, group.ends, strict=True):
            pairs.append(_pairs_begun(group, row, start) + _pairs_end(row, end, at))
            at += len(end)
    return pairs


def _pairs_begun(group: Group, row: Encoded, start: int) -> list[tuple[int, int]]:
    """Returns (row of the logits, label) for the labels of an answer that its group's beginning predicts."""
    stop = min(len(group.shared) + 1, len(row.ids))
    return [(start + t - 1 - group.first, row.ids[t]) for t in range(row.answer_start, stop)]


def _pairs_end(row: Encoded, end: Ids, start: int) -> list[tuple[int, int]]:
    """Returns the same for the labels that its end predicts."""
    shared = len(row.ids) - 1 - len(end)
    return [(start + t - 1 - shared, row.ids[t]) for t in range(max(row.answer_start, shared + 1), len(row.ids))]


def _starts(lengths: Iterable[int], first: int = 0) -> list[int]:
    """Returns the start of each of some consecutive ranges of rows."""
    return list(accumulate(lengths, initial=first))[:-1]


def _stats(logits_NV: Tensor, pairs: Sequence[Sequence[tuple[int, int]]], distribution: bool) -> list[TokenStats]:
    """Returns one TokenStats for each list of (row of the logits, label)."""
    flat = np.array([pair for row in pairs for pair in row], dtype=np.int64).reshape(-1, 2)
    return statistics_at(logits_NV, flat[:, 0].copy(), flat[:, 1].copy(), list(map(len, pairs)), distribution)
