"""Packed attention: each sequence of a row has the attention that it has alone."""

import pytest
import torch
from torch import Tensor, nn

from expunge.models import packed_attention
from expunge.models.attention_blocks import Packed
from expunge.models.attention_steps import Steps
from expunge.models.packed_attention import attention


def heads(tokens: int, count: int, seed: int) -> Tensor:
    return torch.randn(1, count, tokens, 8, generator=torch.Generator().manual_seed(seed))


def plain(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor) -> Tensor:
    """Causal attention of the last tokens of one sequence, [T, H, D]."""
    most, columns = query_1HTD.shape[2], key_1KTD.shape[2]
    shared = query_1HTD.shape[1] // key_1KTD.shape[1]
    scores_1HTS = query_1HTD @ key_1KTD.repeat_interleave(shared, 1).transpose(2, 3) / 8**0.5
    late = torch.arange(columns) > torch.arange(columns - most, columns)[:, None]
    out_1HTD = scores_1HTS.masked_fill(late, float("-inf")).softmax(-1) @ value_1KTD.repeat_interleave(shared, 1)
    return out_1HTD[0].transpose(0, 1)


@pytest.mark.parametrize("pairs", [1, 2, 4])
def test_ends_attend_to_their_beginning_and_themselves(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, before = (5, 3, 7, 40), ((), (range(5),), (range(5),), ())
    total = sum(lengths)
    query, key, value = heads(total, 4, 0), heads(total, pairs, 1), heads(total, pairs, 2)
    monkeypatch.setattr(packed_attention, "_LAYOUT", token := packed_attention.ContextVar("layout", default=None))
    token.set(Packed(lengths, before))
    found_1THD, _ = attention(nn.Identity(), query, key, value, None)
    start = 0
    for length, seen in zip(lengths, before, strict=True):
        own = slice(start, start + length)
        places = [*(t for part in seen for t in part), *range(start, start + length)]
        torch.testing.assert_close(found_1THD[0, own], plain(query[:, :, own], key[:, :, places], value[:, :, places]))
        start += length


def test_new_tokens_attend_to_the_cache_of_their_row(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, lengths = (2, 1), (4, 9)
    keys, values = (torch.cat([heads(12, 2, seed + b) for b in range(2)]) for seed in (10, 20))
    query = heads(3, 4, 0)
    monkeypatch.setattr(packed_attention, "_LAYOUT", token := packed_attention.ContextVar("layout", default=None))
    token.set(Steps(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), lengths, counts))
    found_1NHD, _ = attention(nn.Identity(), query, keys, nn.functional.pad(values, (0, 8)), None)
    for b, mine in enumerate((slice(0, 2), slice(2, 3))):
        seen = lengths[b] + counts[b]
        own = plain(query[:, :, mine], keys[b : b + 1, :, :seen], values[b : b + 1, :, :seen])
        torch.testing.assert_close(found_1NHD[0, mine], own)


@pytest.mark.parametrize("name", packed_attention.UNKNOWN)
def test_attention_of_another_kind_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states = heads(3, 2, 0)
    monkeypatch.setattr(packed_attention, "_LAYOUT", token := packed_attention.ContextVar("layout", default=None))
    token.set(Packed([3], [()]))
    with pytest.raises(NotImplementedError):
        attention(nn.Identity(), states, states, states, None, **{name: 2.0})
