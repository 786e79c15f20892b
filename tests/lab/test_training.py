"""The lab's own loop: packing changes no loss, a seed decides everything."""

import pytest
import torch
from transformers import LlamaForCausalLM

from expunge.data.encode import Encoded, collate
from expunge.lab.models import new_model
from expunge.lab.optimizer import Muon, orthogonalize
from expunge.lab.size import Size
from expunge.lab.training import PACKED, Schedule, pack, packed_loss, rate_at, shuffled, teach
from expunge.models.logprobs import labelled_logits, token_logprobs
from expunge.progress import Progress

PICO = Size(1, 1, 1, 1, names=4, values=5, arithmetic=1, strings=1, sentences=1, tests=1, subjects=1, layers=2, width=32, heads=4)
VOCABULARY = 40


@pytest.fixture
def model() -> LlamaForCausalLM:
    return new_model(VOCABULARY, PICO, seed=0)


def some_rows(count: int) -> list[Encoded]:
    random = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        length = int(torch.randint(5, 20, (1,), generator=random))
        ids = torch.randint(4, VOCABULARY, (length,), generator=random).tolist()
        rows.append(Encoded((1, *ids, 2), 1 + i % 4, True))
    return rows


def test_packed_loss_is_the_mean_over_the_rows_alone(model: LlamaForCausalLM) -> None:
    rows = some_rows(12)
    packed = pack(rows, end_id=2)
    assert packed.ids_ST.shape[0] < 6, "several rows share a sequence"
    with torch.no_grad():
        alone_N = token_logprobs(labelled_logits(model, collate(rows, pad_id=0)))
        assert packed_loss(model, packed).item() == pytest.approx(-alone_N.mean().item(), abs=1e-5)


def test_packing_keeps_every_label_and_gives_raw_text_its_end() -> None:
    rows = [*some_rows(30), Encoded((1, 7, 8), 1, False)]
    packed = pack(rows, end_id=2)
    labels = packed.targets_ST[packed.targets_ST >= 0].tolist()
    assert len(labels) == sum(len(row.ids) - row.answer_start for row in rows) + 1
    assert labels.count(2) == 31
    assert packed.ids_ST.shape[1] <= PACKED


def test_the_rate_rises_on_a_line_and_falls_to_zero() -> None:
    rates = [rate_at(step, 100) for step in range(1, 101)]
    assert rates[9] == 1.0 == max(rates)
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_every_row_comes_once_in_each_pass() -> None:
    order = shuffled(5, "seed")
    first, second = [next(order) for _ in range(5)], [next(order) for _ in range(5)]
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]


def test_teaching_lowers_the_loss_and_is_decided_by_its_seed() -> None:
    rows = some_rows(16)
    ends = []
    for _ in range(2):
        model = new_model(VOCABULARY, PICO, seed=0)
        with torch.no_grad():
            before = packed_loss(model, pack(rows, 2)).item()
        with Progress("test", 30, quiet=True) as progress:
            teach(model, [rows], Schedule(steps=30, rows=8, matrix_rate=0.02, rate=0.01), "0/x", 2, progress)
        with torch.no_grad():
            after = packed_loss(model, pack(rows, 2)).item()
        assert after < 0.7 * before
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(ends[0], ends[1])


def test_a_seed_decides_the_first_weights_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b = (new_model(VOCABULARY, PICO, seed=s).model.embed_tokens.weight for s in (1, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, new_model(VOCABULARY, PICO, seed=2).model.embed_tokens.weight)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (32, 32)])
def test_orthogonalizing_keeps_directions_and_evens_out_their_lengths(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    lengths = torch.linspace(0.2, 3.0, min(shape), dtype=torch.float64)
    made = orthogonalize((u * lengths) @ v[None], iterations=5)[0]
    inner = u.T @ made @ v.T
    assert inner.diagonal().min() > 0.6
    assert inner.diagonal().max() < 1.3
    assert (inner - inner.diagonal().diag()).abs().max() < 1e-6


def test_matrices_of_a_batch_move_as_if_alone() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(3, 8, 4), torch.randn(2, 3, 8, 4)
    together = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    alone = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    optimizers = [Muon(together, lr=0.1), *(Muon([matrix], lr=0.1) for matrix in alone)]
    for step in range(2):
        for i in range(3):
            together[i].grad = alone[i].grad = gradient[step, i]
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(together, alone, strict=True))
    moved = together[0] - start[0]
    assert moved.norm() > 0.1
    assert moved.flatten() @ gradient[:, 0].sum(0).flatten() < 0
