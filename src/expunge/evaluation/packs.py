"""Scores trees of answers in packs: one row of tokens without any padding (`models.packed_attention`).

Shape suffixes: T tokens of a pack, N positions where logits are computed, M labels.
"""

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.evaluation.beginnings import Ids
from expunge.evaluation.changed_prompts import changed
from expunge.evaluation.token_stats import TokenDistribution, TokenStats
from expunge.evaluation.trees import Path, Tree
from expunge.models.attention_blocks import Packed
from expunge.models.load import causal_model
from expunge.models.logprobs import logits_at
from expunge.models.packed_attention import packed
from expunge.models.vocabulary import label_distribution, peaks


def packs(trees: Sequence[Tree], max_tokens: int, max_rows: int, max_logits: int, longest: int | None) -> list[list[int]]:
    """Groups indices of trees into packs, the largest first, so that a lack of memory shows at once.

    max_tokens, max_rows, max_logits   upper bounds of a pack, in tokens, trees and labels; a larger tree is a pack of its own
    longest                            a tree with a longer row is a pack of its own, since it would change the others' positions
    """
    sizes = [tree.tokens for tree in trees]
    found, tokens, logits, whole = list[list[int]](), 0, 0, True
    """`whole`: the last pack takes no more trees."""
    for g in sorted(range(len(trees)), key=lambda g: (-sizes[g], g)):
        long = longest is not None and max(len(row.ids) - 1 for row in trees[g].rows) > longest
        tokens, logits = tokens + sizes[g], logits + trees[g].labels
        if whole or long or tokens > max_tokens or logits > max_logits or len(found[-1]) >= max_rows:
            found.append([])
            tokens, logits = sizes[g], trees[g].labels
        found[-1].append(g)
        whole = long
    return found


def read_pack(model: nn.Module, trees: Sequence[Tree], pad_id: int, distribution: bool) -> list[TokenStats]:
    """Computes one row that holds every tree: the statistics of all their answers, in order."""
    device = causal_model(model).device
    ids, positions, lengths, before = list[int](), list[NDArray[np.int64]](), list[int](), list[Path]()
    where, labels, prompts = list[NDArray[np.int64]](), list[Ids](), list[tuple[int, object]]()
    for tree in trees:
        start = len(ids)
        for segment in tree.segments:
            if not segment.before:
                prompts.append((len(ids), tree.under))
            ids += segment.ids
            positions.append(np.arange(segment.depth, segment.depth + len(segment.ids)))
            lengths.append(len(segment.ids))
            before.append(tuple(range(start + part.start, start + part.stop) for part in segment.before))
        for row, path in zip(tree.rows, tree.paths, strict=True):
            read = np.concatenate([np.arange(start + part.start, start + part.stop) for part in path])
            where.append(read[row.answer_start - 1 :])
            labels.append(row.ids[row.answer_start :])
    where_M = np.concatenate(where)
    read_T = np.zeros(len(ids), dtype=bool)
    read_T[where_M] = True
    index_N = torch.from_numpy(np.flatnonzero(read_T)).to(device)
    with packed(model, Packed(lengths, before)), changed(model, prompts):
        logits_NV = logits_at(
            model,
            torch.tensor([ids], device=device),
            None,
            index_N,
            torch.from_numpy(np.concatenate(positions))[None].to(device),
        )
    labels_M = np.array(list(chain.from_iterable(labels)), dtype=np.int64)
    return statistics_at(logits_NV, (read_T.cumsum() - 1)[where_M], labels_M, list(map(len, labels)), distribution)


def statistics_at(
    logits_NV: Tensor, where_M: NDArray[np.int64], labels_M: NDArray[np.int64], counts: Sequence[int], distribution: bool
) -> list[TokenStats]:
    """Returns statistics of consecutive runs of `counts` labels.

    where_M   row of the logits that predicts each label
    """
    rows_M, tokens_M = (torch.from_numpy(values).to(logits_NV.device) for values in (where_M, labels_M))
    found = peaks(logits_NV)
    logp_M = (logits_NV[rows_M, tokens_M].float() - found.lse_N[rows_M]).cpu().numpy()
    hit_M = (found.best_N[rows_M] == tokens_M).cpu().numpy()
    spread = None
    if distribution:
        around = label_distribution(logits_NV[rows_M], tokens_M, found.lse_N[rows_M])
        spread = TokenDistribution(*(value.cpu().numpy() for value in around))
    stops = np.cumsum([0, *counts])
    parts = [slice(begin, stop) for begin, stop in pairwise(stops)]
    return [TokenStats(logp_M[p], hit_M[p], False, None if spread is None else spread.part(p)) for p in parts]
