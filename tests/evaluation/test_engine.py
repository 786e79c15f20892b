"""One teacher-forced forward row for each unique sequence, and values that batches do not change."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from expunge.data.encode import Encoded
from expunge.evaluation.engine import Engine


@contextmanager
def forwarded(model: torch.nn.Module) -> Iterator[list[tuple[int, ...]]]:
    """The attended ids of every row that goes through the model."""
    rows: list[tuple[int, ...]] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pairs = zip(kwargs["input_ids"], kwargs["attention_mask"].bool(), strict=True)
        rows.extend(tuple(ids[mask].tolist()) for ids, mask in pairs)

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


def sequences(count: int = 40, seed: int = 0) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = (1, *rng.integers(4, 60, size=int(rng.integers(4, 20))).tolist(), 2)
        rows.append(Encoded(ids, int(rng.integers(1, len(ids) - 1)), True))
    return rows


def test_statistics_are_those_of_a_plain_forward(pico_llama: LlamaForCausalLM) -> None:
    rows = sequences(10)
    for row, stats in zip(rows, Engine(pico_llama, 0).score(rows), strict=True):
        with torch.no_grad():
            logits_TV = pico_llama(torch.tensor([row.ids])).logits[0]
        predicted_NV = logits_TV[row.answer_start - 1 : -1].log_softmax(dim=-1)
        labels_N = torch.tensor(row.ids[row.answer_start :])
        np.testing.assert_allclose(stats.logp, predicted_NV[torch.arange(len(labels_N)), labels_N], atol=2e-5)
        np.testing.assert_array_equal(stats.hit, predicted_NV.argmax(-1) == labels_N)


def test_each_unique_sequence_is_forwarded_exactly_once(pico_llama: LlamaForCausalLM) -> None:
    rows = sequences()
    engine = Engine(pico_llama, 0, max_tokens=60)
    with forwarded(pico_llama) as seen:
        first = engine.score(rows + rows[:10])
        again = engine.score(rows[::-1])
    assert sorted(seen) == sorted({row.ids[:-1] for row in rows}), "the last token is a label and is not read"
    for a, b in zip(first[: len(rows)], again[::-1], strict=True):
        np.testing.assert_array_equal(a.logp, b.logp)


def test_a_later_answer_start_is_a_slice_and_costs_nothing(pico_llama: LlamaForCausalLM) -> None:
    ids = (1, 10, 11, 12, 13, 2)
    engine = Engine(pico_llama, 0)
    with forwarded(pico_llama) as seen:
        late, early = engine.score([Encoded(ids, 4, True), Encoded(ids, 2, True)])
        [middle] = engine.score([Encoded(ids, 3, True)])
    assert len(seen) == 1
    assert (len(early.logp), len(middle.logp), len(late.logp)) == (4, 3, 2)
    np.testing.assert_array_equal(early.logp[2:], late.logp)


def test_an_earlier_answer_start_is_computed(pico_llama: LlamaForCausalLM) -> None:
    ids = (1, 10, 11, 12, 13, 2)
    engine = Engine(pico_llama, 0)
    engine.score([Encoded(ids, 4, True)])
    [early] = engine.score([Encoded(ids, 1, True)])
    assert len(early.logp) == 5


@pytest.mark.parametrize(("max_tokens", "max_rows"), [(1, 1), (50, 3), (10_000, 1000)])
def test_batch_size_changes_no_value(pico_llama: LlamaForCausalLM, max_tokens: int, max_rows: int) -> None:
    rows = sequences()
    reference = Engine(pico_llama, 0, max_tokens=80, max_rows=7).score(rows)
    for a, b in zip(reference, Engine(pico_llama, 0, max_tokens=max_tokens, max_rows=max_rows).score(rows), strict=True):
        np.testing.assert_allclose(a.logp, b.logp, atol=2e-5)
        np.testing.assert_array_equal(a.hit, b.hit)


def test_order_changes_no_value(pico_llama: LlamaForCausalLM) -> None:
    rows = sequences()
    forward = Engine(pico_llama, 0, max_tokens=80).score(rows)
    backward = Engine(pico_llama, 0, max_tokens=80).score(rows[::-1])[::-1]
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_allclose(a.logp, b.logp, atol=2e-5)


def test_a_pad_token_that_occurs_in_the_text_changes_no_value(pico_llama: LlamaForCausalLM) -> None:
    rows = sequences()
    for a, b in zip(Engine(pico_llama, 0).score(rows), Engine(pico_llama, 2).score(rows), strict=True):
        np.testing.assert_allclose(a.logp, b.logp, atol=2e-5)


def test_batches_are_bounded_by_tokens_with_padding(pico_llama: LlamaForCausalLM) -> None:
    shapes: list[tuple[int, ...]] = []
    pico_llama.register_forward_pre_hook(lambda _, __, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True)
    Engine(pico_llama, 0, max_tokens=64, max_rows=5).score(sequences())
    assert all(rows <= 5 and rows * length <= 64 for rows, length in shapes)
    assert len(shapes) > 1


def test_logits_exist_at_answer_positions_only(pico_llama: LlamaForCausalLM) -> None:
    rows = sequences(6)
    heads: list[int] = []
    pico_llama.lm_head.register_forward_hook(lambda _, __, logits: heads.append(logits.numel() // logits.shape[-1]))
    Engine(pico_llama, 0).score(rows)
    assert sum(heads) == sum(len(row.ids) - row.answer_start for row in rows)


def test_a_training_model_is_scored_without_dropout_and_left_as_it_was(pico_llama: LlamaForCausalLM) -> None:
    rows = sequences(5)
    reference = Engine(pico_llama, 0).score(rows)
    pico_llama.config.attention_dropout = 0.9
    pico_llama.train()
    for a, b in zip(reference, Engine(pico_llama, 0).score(rows), strict=True):
        np.testing.assert_allclose(a.logp, b.logp, atol=2e-5)
    assert pico_llama.training


def test_rank_mean_and_variance_are_those_of_the_full_distribution(pico_llama: LlamaForCausalLM) -> None:
    rows = sequences(10)
    for row, stats in zip(rows, Engine(pico_llama, 0, max_tokens=60).score(rows, distribution=True), strict=True):
        assert stats.distribution is not None
        with torch.no_grad():
            logp_NV = pico_llama(torch.tensor([row.ids])).logits[0, row.answer_start - 1 : -1].double().log_softmax(dim=-1)
        p_NV = logp_NV.exp()
        mean_N = (p_NV * logp_NV).sum(-1)
        np.testing.assert_allclose(stats.distribution.mean, mean_N, atol=2e-5)
        np.testing.assert_allclose(stats.distribution.variance, (p_NV * logp_NV**2).sum(-1) - mean_N**2, atol=1e-4)
        order = logp_NV.argsort(dim=-1, descending=True)
        labels_N = torch.tensor(row.ids[row.answer_start :])
        np.testing.assert_array_equal(stats.distribution.rank, (order == labels_N[:, None]).int().argmax(-1))
        np.testing.assert_array_equal(stats.distribution.rank == 0, stats.hit)


def test_the_distribution_is_computed_only_when_asked_for_and_then_once(pico_llama: LlamaForCausalLM) -> None:
    rows = sequences(6)
    engine = Engine(pico_llama, 0)
    with forwarded(pico_llama) as seen:
        exact = engine.score(rows, distribution=True)
        plain = engine.score(rows)
        engine.score(rows, distribution=True)
    assert len(seen) == 6
    assert all(a.distribution is not None and np.array_equal(a.logp, b.logp) for a, b in zip(exact, plain, strict=True))
    assert all(stats.distribution is None for stats in Engine(pico_llama, 0).score(rows))


def test_a_slice_of_the_distribution_belongs_to_the_slice_of_the_tokens(pico_llama: LlamaForCausalLM) -> None:
    ids = (1, 10, 11, 12, 13, 2)
    early, late = Engine(pico_llama, 0).score([Encoded(ids, 1, True), Encoded(ids, 4, True)], distribution=True)
    assert early.distribution is not None
    assert late.distribution is not None
    np.testing.assert_array_equal(early.distribution.mean[3:], late.distribution.mean)
    text = early.without_end().distribution
    assert text is not None
    assert len(text.rank) == 4


def test_gradient_norms_are_those_of_plain_backward_passes_and_leave_no_trace(pico_llama: LlamaForCausalLM) -> None:
    rows = sequences(4)
    pico_llama.model.layers[0].requires_grad_(False)
    norms = Engine(pico_llama, 0).gradient_norms(rows + rows[:1])
    assert all(weight.grad is None for weight in pico_llama.parameters())
    assert not any(weight.requires_grad for weight in pico_llama.model.layers[0].parameters())
    pico_llama.requires_grad_(True)
    for row, norm in zip(rows, norms, strict=False):
        labels = torch.tensor([[-100] * row.answer_start + list(row.ids[row.answer_start :])])
        pico_llama.zero_grad()
        pico_llama(input_ids=torch.tensor([row.ids]), labels=labels).loss.backward()
        expected = np.mean([weight.grad.norm().item() for weight in pico_llama.parameters() if weight.grad is not None])
        assert norm == pytest.approx(expected, rel=1e-4)
    assert norms[4] == norms[0]
