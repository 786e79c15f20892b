"""Scores groups of answers in packs: one row of tokens without any padding (`models.packed_attention`).

Shape suffixes: T tokens of a pack, N positions where logits are computed, M labels.
"""

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.evaluation.beginnings import Group, Ids
from expunge.evaluation.changed_prompts import changed
from expunge.evaluation.token_stats import TokenDistribution, TokenStats
from expunge.models.attention_blocks import Packed
from expunge.models.load import causal_model
from expunge.models.logprobs import logits_at
from expunge.models.packed_attention import packed
from expunge.models.vocabulary import label_distribution, peaks


def packs(groups: Sequence[Group], max_tokens: int, max_rows: int, max_logits: int, longest: int | None) -> list[list[int]]:
    """Groups indices of groups into packs, the largest groups first, so that a lack of memory shows at once.

    max_tokens, max_rows, max_logits   upper bounds of a pack, in tokens, groups and labels; a larger group is a pack of its own
    longest                            a group with a longer row is a pack of its own, since it would change the others' positions
    """
    sizes = [len(group.shared) + sum(map(len, set(group.ends))) for group in groups]
    labels = [group.begun + group.more for group in groups]
    found, tokens, logits, whole = list[list[int]](), 0, 0, True
    """`whole`: the last pack takes no more groups."""
    for g in sorted(range(len(groups)), key=lambda g: (-sizes[g], g)):
        long = longest is not None and max(len(row.ids) - 1 for row in groups[g].rows) > longest
        tokens, logits = tokens + sizes[g], logits + labels[g]
        if whole or long or tokens > max_tokens or logits > max_logits or len(found[-1]) >= max_rows:
            found.append([])
            tokens, logits = sizes[g], labels[g]
        found[-1].append(g)
        whole = long
    return found


def read_pack(model: nn.Module, groups: Sequence[Group], pad_id: int, distribution: bool) -> list[TokenStats]:
    """Computes one row that holds every group: the statistics of all their answers, in order."""
    device = causal_model(model).device
    # The longest end stands right behind its beginning, so that both are one sequence.
    ends = [sorted(dict.fromkeys(end for end in group.ends if end), key=len, reverse=True) for group in groups]
    firsts = [group.shared + some[0] if some else group.shared for group, some in zip(groups, ends, strict=True)]
    further = [[len(end) for end in some[1:]] for some in ends]
    layout = Packed([len(first) for first in firsts], [len(group.shared) for group in groups], further)
    begun = sum(layout.firsts)
    ids = [token for first in firsts for token in first]
    positions = [np.arange(length) for length in layout.firsts]
    start, where, labels = 0, list[NDArray[np.int64]](), list[Ids]()
    prompts = list[tuple[int, object]]()
    for group, first, some in zip(groups, firsts, ends, strict=True):
        shared = len(group.shared)
        prompts.append((start, group.under))
        places: dict[Ids, int] = {(): 0, first[shared:]: start + shared}
        for end in some[1:]:
            places[end] = begun
            ids.extend(end)
            positions.append(np.arange(shared, shared + len(end)))
            begun += len(end)
        for row, end in zip(group.rows, group.ends, strict=True):
            read = np.arange(row.answer_start - 1, len(row.ids) - 1)
            where.append(np.where(read < shared, start + read, places[end] - shared + read))
            labels.append(row.ids[row.answer_start :])
        start += len(first)
    where_M = np.concatenate(where)
    read_T = np.zeros(len(ids), dtype=bool)
    read_T[where_M] = True
    index_N = torch.from_numpy(np.flatnonzero(read_T)).to(device)
    with packed(model, layout), changed(model, prompts):
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
