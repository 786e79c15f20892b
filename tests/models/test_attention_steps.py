"""Attention of new tokens to the cache of their row: each row has the softmax that it has alone."""

import pytest
import torch
from torch import Tensor, nn

from expunge.models import attention_steps
from expunge.models.attention_steps import Steps, attend_steps, value_columns

COUNTS, LENGTHS = (2, 1, 3, 1, 4), (4, 9, 0, 7, 60)


def layout() -> Steps:
    row_N = torch.tensor([b for b, count in enumerate(COUNTS) for _ in range(count)])
    depth_N = torch.tensor([t for count in COUNTS for t in range(count)])
    return Steps(row_N, depth_N, LENGTHS, COUNTS)


def states(pairs: int, shared: int, width: int, size: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries of the new tokens, and keys and values of rows with some columns that nothing was written to."""
    draw = torch.Generator().manual_seed(0)
    query_NKGD = torch.randn(sum(COUNTS), pairs, shared, width, generator=draw) * size
    key_BKSD, value_BKSD = (torch.randn(len(COUNTS), pairs, 70, width, generator=draw) for _ in range(2))
    for b, (length, count) in enumerate(zip(LENGTHS, COUNTS, strict=True)):
        key_BKSD[b, :, length + count :] = value_BKSD[b, :, length + count :] = 0.0
    return query_NKGD, key_BKSD * size, nn.functional.pad(value_BKSD, (0, value_columns(width) - width))


def plain(query_NKGD: Tensor, key_BKSD: Tensor, value_BKSC: Tensor) -> Tensor:
    """Computes the same in float64, row by row and token by token."""
    found, n = [], 0
    for b, (length, count) in enumerate(zip(LENGTHS, COUNTS, strict=True)):
        for t in range(count):
            seen = length + t + 1
            scores_KGS = query_NKGD[n].double() @ key_BKSD[b, :, :seen].double().transpose(1, 2) * 0.3
            found.append(scores_KGS.softmax(-1) @ value_BKSC[b, :, :seen, : query_NKGD.shape[-1]].double())
            n += 1
    return torch.stack(found)


@pytest.mark.parametrize(("pairs", "shared", "width"), [(1, 1, 8), (2, 3, 8), (3, 2, 16), (2, 1, 24)])
@pytest.mark.parametrize("run", [1, 2, 32])
@pytest.mark.parametrize("products", [True, False])
def test_every_new_token_attends_to_its_row_up_to_itself(
    pairs: int, shared: int, width: int, run: int, products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_steps, "RUN", run)
    monkeypatch.setattr(attention_steps, "_by_kernel" if products else "_by_products", None)  # not called
    layer, given = nn.Identity(), states(pairs, shared, width)
    if not products:
        attention_steps.mark_large(layer)
    found = attend_steps(layer, layout(), *given, 0.3)
    torch.testing.assert_close(found.double(), plain(*given), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_large_scores_are_left_to_the_kernel(sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = states(2, 2, 8, 20.0)
    key, query = key.abs() * sign, query.abs()  # scores of about +-800: without the maximum, infinite or all zero
    layer = nn.Identity()
    for _ in range(2):
        found = attend_steps(layer, layout(), query, key, value, 0.3)
        torch.testing.assert_close(found.double(), plain(query, key, value), atol=2e-4, rtol=2e-4)
        monkeypatch.setattr(attention_steps, "_by_products", None)  # not tried again for this layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_left_to_the_kernel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_steps, "_by_products", None)
    given = [values.to(dtype) for values in states(2, 3, 8)]
    found = attend_steps(nn.Identity(), layout(), *given, 0.3)
    assert found.dtype == dtype
    bound = 1e-12 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(found.double(), plain(*given), atol=bound, rtol=bound)


def test_what_is_not_a_number_in_one_row_stays_there() -> None:
    query, key, value = states(1, 1, 8)
    value[1, 0, 3, 0] = float("nan")
    found = attend_steps(nn.Identity(), layout(), query, key, value, 0.3)
    assert found[2].isnan().any()
    assert found[[0, 1, *range(3, 11)]].isfinite().all()
