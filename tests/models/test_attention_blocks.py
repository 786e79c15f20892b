"""Attention in blocks: every sequence has the softmax that it has alone, however long it is and however large its scores are."""

import pytest
import torch
from torch import Tensor, nn

from expunge.models import attention_blocks
from expunge.models.attention_blocks import Packed, attend

LENGTHS = (5, 3, 7, 30, 47, 2, 3, 2, 150, 140, 1, 9, 20, 33, 6)
A, B, C, D = (range(5),), (range(94, 95),), (range(99, 229),), (range(99, 129), range(249, 262))
BEFORE = ((), A, A, A, (), (), (), B, (), C, C, C, C, C, D)
"""What each segment sees besides itself: nothing, a beginning, or parts of two segments."""


def states(pairs: int, shared: int, size: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values of all tokens of the layout."""
    total = sum(LENGTHS)
    draw = torch.Generator().manual_seed(0)
    query_KQD, key_KTD, value_KTD = (
        torch.randn(pairs, total * times, 8, generator=draw) * times_size
        for times, times_size in ((shared, size), (1, size), (1, 1.0))
    )
    return query_KQD, key_KTD, value_KTD


def attended(layer: nn.Module, layout: Packed, given: tuple[Tensor, Tensor, Tensor], shared: int) -> Tensor:
    """Returns what `attend` computes, [K, Q, D]; queries of heads that share their keys stand next to each other."""
    query_KQD, key_KTD, value_KTD = given
    query_KGTD = query_KQD.unflatten(1, (-1, shared)).transpose(1, 2)
    return attend(layer, layout, query_KGTD, key_KTD, value_KTD, 0.3).transpose(0, 1).flatten(1, 2)


def plain(query_KQD: Tensor, key_KTD: Tensor, value_KTD: Tensor, shared: int) -> Tensor:
    """Computes the same by one dense product in float64, whose mask says what every token sees."""
    tokens = key_KTD.shape[1]
    sees_TT = torch.zeros(tokens, tokens, dtype=torch.bool)
    start = 0
    for length, before in zip(LENGTHS, BEFORE, strict=True):
        own = slice(start, start + length)
        for part in before:
            sees_TT[own, part.start : part.stop] = True
        sees_TT[own, own] = torch.ones(length, length, dtype=torch.bool).tril()
        start += length
    scores_KQT = query_KQD.double() @ key_KTD.double().transpose(1, 2) * 0.3
    hidden_QT = ~sees_TT.repeat_interleave(shared, 0)
    return scores_KQT.masked_fill(hidden_QT, float("-inf")).softmax(-1) @ value_KTD.double()


@pytest.mark.parametrize(("pairs", "shared"), [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("most", [8, 128])
@pytest.mark.parametrize("copied", [1, 2**14])
def test_every_token_attends_to_its_own_sequence(
    pairs: int, shared: int, most: int, copied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_blocks, "BLOCK", most)
    monkeypatch.setattr(attention_blocks, "COPIED", copied)
    monkeypatch.setattr(attention_blocks, "SHORT", min(most, attention_blocks.SHORT))
    given = states(pairs, shared)
    found = attended(nn.Identity(), Packed(LENGTHS, BEFORE), given, shared)
    torch.testing.assert_close(found.double(), plain(*given, shared), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_large_scores_are_left_to_the_kernel(sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = states(2, 1, 20.0)
    key, query = key.abs() * sign, query.abs()  # scores of about +-800: without the maximum, infinite or all zero
    layer, layout = nn.Identity(), Packed(LENGTHS, BEFORE)
    for _ in range(2):
        found = attended(layer, layout, (query, key, value), 1)
        torch.testing.assert_close(found.double(), plain(query, key, value, 1), atol=2e-4, rtol=2e-4)
        monkeypatch.setattr(attention_blocks, "_by_products", None)  # not tried again for this layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_left_to_the_kernel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_blocks, "_by_products", None)
    given = [values.to(dtype) for values in states(2, 3)]
    found = attended(nn.Identity(), Packed(LENGTHS, BEFORE), given, 3)
    assert found.dtype == dtype
    bound = 1e-12 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(found.double(), plain(*given, 3), atol=bound, rtol=bound)


def test_what_is_not_a_number_stays_so() -> None:
    query, key, value = states(1, 1)
    value[0, 2, 0] = float("nan")
    found = attended(nn.Identity(), Packed(LENGTHS, BEFORE), (query, key, value), 1)
    assert found[0, 2:45].isnan().any(-1).all(), "its own segment and those that see it"
    assert found[0, 45:].isfinite().all()


def test_what_is_not_a_number_stays_in_its_sequence_however_short_it_is() -> None:
    query, key, value = states(1, 1)
    value[0, 2, 0] = float("nan")
    layout = Packed([2, 2, 2, *LENGTHS[1:]], [(), (), (), *BEFORE[1:]])
    query, key, value = (torch.cat([some[:, :1], some], dim=1) for some in (query, key, value))
    found = attended(nn.Identity(), layout, (query, key, value), 1)
    assert found[0, [0, 1, 4, 5]].isfinite().all()
    assert found[0, 3].isnan().any()


def test_layers_may_share_keys_in_other_numbers() -> None:
    layout = Packed(LENGTHS, BEFORE)
    for pairs, shared in ((1, 3), (3, 1)):
        given = states(pairs, shared)
        found = attended(nn.Identity(), layout, given, shared)
        torch.testing.assert_close(found.double(), plain(*given, shared), atol=2e-6, rtol=2e-6)
