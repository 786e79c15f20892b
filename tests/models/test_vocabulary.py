"""Sums over the vocabulary: the same whatever the chunks, in any dtype, also where a model is sure or has no opinion."""

import pytest
import torch

from expunge.models import vocabulary
from expunge.models.vocabulary import label_distribution, peaks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 50, 2**19])
def test_peaks_are_logsumexp_and_argmax(dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    logits_NV = (100 * torch.randn(7, 23)).to(dtype)
    logits_NV[3, 5:9] = -torch.inf  # words that a model may not say
    found = peaks(logits_NV)
    torch.testing.assert_close(found.lse_N, logits_NV.float().logsumexp(dim=1))
    assert found.best_N.tolist() == logits_NV.argmax(dim=1).tolist()


def test_the_first_of_equally_probable_words_is_the_greedy_one() -> None:
    found = peaks(torch.tensor([[0.0, 2.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0]]))
    assert found.best_N.tolist() == [1, 0]


def test_logits_that_are_not_numbers_give_no_number() -> None:
    found = peaks(torch.tensor([[0.0, torch.nan, 1.0], [0.0, torch.inf, 1.0], [0.0, 1.0, 2.0]]))
    assert found.lse_N.isnan().tolist() == [True, True, False]


def test_rank_mean_and_variance_of_log_probabilities_by_hand() -> None:
    p_NV = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    logits_NV = (p_NV.log() + 7).float()  # -inf where a word cannot come
    found = label_distribution(logits_NV, torch.tensor([1, 1]), peaks(logits_NV).lse_N)
    assert found.rank_N.tolist() == [1, 0]
    log2 = torch.tensor(2.0).log()
    torch.testing.assert_close(found.mean_N, torch.stack([-1.5 * log2, 0 * log2]))
    torch.testing.assert_close(found.variance_N, torch.stack([0.25 * log2**2, 0 * log2]), atol=1e-6, rtol=1e-5)
