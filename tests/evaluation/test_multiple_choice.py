"""Shared beginnings: the values of full passes, for every architecture, with fewer tokens through the model."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from expunge.data.encode import Encoded
from expunge.evaluation import multiple_choice
from expunge.evaluation.engine import Engine
from expunge.evaluation.multiple_choice import score_answers
from expunge.evaluation.shortcuts import shortcuts_of
from expunge.evaluation.token_stats import TokenStats
from expunge.models.attention_blocks import Packed
from expunge.models.packed_attention import packed

PAD = 0


def tokens(count: int, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(rng.integers(4, 60, size=count).tolist())


def asked(prompts: Sequence[int] = (3, 40, 9, 14, 20, 5, 11), ends: Sequence[int] = (1, 3, 6, 2)) -> list[list[Encoded]]:
    """Questions with prompts and answers of so many tokens."""
    rng = np.random.default_rng(0)
    begun = [(1, *tokens(length, rng)) for length in prompts]
    return [[Encoded((*prompt, *tokens(length, rng)), len(prompt), False) for length in ends] for prompt in begun]


def letters(prompts: Sequence[int] = (3, 40, 9, 14)) -> list[list[Encoded]]:
    return [[row._replace(ids=(*row.ids[:-1], 5 + a)) for a in range(4)] for (row,) in asked(prompts, (1,))]


def full(model: nn.Module, questions: Sequence[Sequence[Encoded]]) -> list[list[TokenStats]]:
    """Each answer in a pass of its own."""
    return [[Engine(model, PAD, max_rows=1).score([answer])[0] for answer in answers] for answers in questions]


def score(
    model: nn.Module, questions: Sequence[Sequence[Encoded]], max_tokens: int = 2048, max_rows: int = 512
) -> list[list[TokenStats]]:
    return score_answers(model, questions, PAD, max_tokens=max_tokens, max_rows=max_rows)


def assert_same(found: Sequence[Sequence[TokenStats]], expected: Sequence[Sequence[TokenStats]]) -> None:
    assert len(found) == len(expected)
    for some, others in zip(found, expected, strict=True):
        assert len(some) == len(others)
        for one, other in zip(some, others, strict=True):
            np.testing.assert_allclose(one.logp, other.logp, rtol=0, atol=1e-5)
            np.testing.assert_array_equal(one.hit, other.hit)


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches with padding, as on a GPU, where there are no packs."""
    monkeypatch.setattr(multiple_choice, "shortcuts_of", lambda model: shortcuts_of(model)._replace(packed=False))


def test_shared_beginnings_give_the_values_of_full_passes(any_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of 4 to 41 tokens in one batch, so that padding stands before, between and after; sliding windows of 6 tokens. On
    a CPU most models take packs; then the same with padding."""
    questions = asked() + letters()
    expected = full(any_model, questions)
    assert_same(score(any_model, questions), expected)
    if shortcuts_of(any_model).packed:
        monkeypatch.setattr(multiple_choice, "shortcuts_of", lambda model: shortcuts_of(model)._replace(packed=False))
        assert_same(score(any_model, questions), expected)


@pytest.mark.parametrize("tokens", [1, 60, 150, 4096])
def test_packs_hold_every_answer_once_and_no_padding(
    pico_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    questions = [*asked((3, 9, 14, 20)), [asked((5,), (6,))[0][0]] * 2]
    passes = counted(pico_llama, monkeypatch)
    found = score(pico_llama, questions, tokens)
    assert sum(passes) == 4 + 10 + 15 + 21 + 4 * (0 + 2 + 5 + 1) + 11, "each beginning and each end once"
    assert all(count <= max(tokens, 29) for count in passes)
    assert_same(found, full(pico_llama, questions))


def test_packs_give_the_distribution_too(pico_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for question in asked() for row in question]
    found = Engine(pico_llama, PAD).score(rows, distribution=True)
    monkeypatch.setattr(multiple_choice, "shortcuts_of", lambda model: shortcuts_of(model)._replace(packed=False))
    for one, other in zip(found, Engine(pico_llama, PAD).score(rows, distribution=True), strict=True):
        assert one.distribution is not None
        assert other.distribution is not None
        np.testing.assert_array_equal(one.distribution.rank, other.distribution.rank)
        np.testing.assert_allclose(one.distribution.mean, other.distribution.mean, atol=1e-5)
        np.testing.assert_allclose(one.distribution.variance, other.distribution.variance, rtol=1e-4)


def test_a_pack_leaves_the_model_its_attention_also_where_it_fails(pico_llama: LlamaForCausalLM) -> None:
    with pytest.raises(NotImplementedError), packed(pico_llama, Packed([3], [()])):
        pico_llama(torch.tensor([[1, 7, 8]]), attention_mask=torch.ones(1, 1, 3, 3, dtype=torch.bool))
    assert pico_llama.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("max_rows", [1, 3, 512])
@pytest.mark.parametrize("max_tokens", [1, 100, 4096])
def test_batches_change_no_value(pico_llama: LlamaForCausalLM, max_rows: int, max_tokens: int) -> None:
    questions = asked() + letters()
    assert_same(score(pico_llama, questions, max_tokens, max_rows), score(pico_llama, questions))


@pytest.mark.usefixtures("padded")
def test_one_row_for_all_ends_is_a_row_for_each(pico_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    together = score(pico_llama, asked())
    apart = shortcuts_of(pico_llama)._replace(tree=False, packed=False)
    monkeypatch.setattr(multiple_choice, "shortcuts_of", lambda model: apart)
    assert_same(score(pico_llama, asked()), together)


@pytest.mark.usefixtures("padded")
def test_rows_that_are_too_long_for_a_mask_are_scored_too(pico_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = score(pico_llama, asked() + letters())
    monkeypatch.setattr(multiple_choice, "MASKED", 25)
    passes = counted(pico_llama, monkeypatch)
    assert_same(score(pico_llama, asked() + letters()), expected)
    assert len(passes) == 4  # letters; masked rows; beginnings of the others, and their ends


@pytest.mark.usefixtures("padded")
def test_long_ends_are_read_in_rows_of_their_own(pico_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one row of 92 tokens most pairs would be hidden from each other; in one of 20 few are."""

    def question(length: int) -> list[Encoded]:
        return [Encoded((1, 7, 8, 9, *(10 + (i * (a + 3)) % 60 for i in range(length))), 4, False) for a in range(4)]

    passes = counted(pico_llama, monkeypatch)
    found = score(pico_llama, [question(5), question(23)])
    assert len(passes) == 3  # one row for the short ends; the beginning of the long ones, and these
    assert_same(found, full(pico_llama, [question(5), question(23)]))


def test_answers_that_begin_alike_share_more_than_the_prompt(pico_llama: LlamaForCausalLM) -> None:
    prompt, same = (1, 7, 8, 9), (20, 21, 22)
    question = [Encoded((*prompt, *same, *rest), len(prompt), False) for rest in ((30,), (31, 32), (33, 34, 35))]
    assert_same(score(pico_llama, [question]), full(pico_llama, [question]))


def test_one_answer_that_begins_another_is_scored(pico_llama: LlamaForCausalLM) -> None:
    question = [Encoded((1, 7, 8, *rest), 3, False) for rest in ((20,), (20, 21), (20, 21, 22))]
    assert_same(score(pico_llama, [question]), full(pico_llama, [question]))


def test_equal_answers_get_equal_values(pico_llama: LlamaForCausalLM) -> None:
    row = Encoded((1, 7, 8, 20, 21), 3, False)
    assert_same(score(pico_llama, [[row, row]]), full(pico_llama, [[row, row]]))


def test_prompts_that_differ_are_no_obstacle(pico_llama: LlamaForCausalLM) -> None:
    """As where a long prompt loses more tokens before a longer answer, or a tokenizer joins prompt and answer."""
    question = [Encoded((5, 6, 7, 20), 3, False), Encoded((6, 7, 20, 21), 2, False), Encoded((5, 6, 9, 20), 3, False)]
    assert_same(score(pico_llama, [question]), full(pico_llama, [question]))


def test_labels_may_begin_before_the_answers_part(pico_llama: LlamaForCausalLM) -> None:
    """Raw texts with a common beginning, labelled from their second token on."""
    question = [Encoded((1, 7, 8, 9, *rest), 1, False) for rest in ((20, 21), (30, 31, 32))]
    found = score(pico_llama, [question])
    assert [len(stats.logp) for stats in found[0]] == [5, 6]
    assert_same(found, full(pico_llama, [question]))


def counted(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that fills with the number of tokens of each pass. (Not by hooks: with them, every answer gets a full pass.)"""
    shortcuts_of(model)  # measured before, once
    passes: list[int] = []
    inner = model.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        passes.append(named["input_ids"].numel())
        return inner(*arguments, **named)

    monkeypatch.setattr(model, "forward", forward)
    return passes


@pytest.mark.usefixtures("padded")
def test_letters_take_one_row_a_question_and_one_pass(pico_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = counted(pico_llama, monkeypatch)
    score(pico_llama, letters((10, 10, 10)))
    assert passes == [3 * 16]  # 11 tokens, in a width of eights; the letter itself is predicted and not read


@pytest.mark.usefixtures("padded")
def test_longer_answers_take_their_prompt_once(pico_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = counted(pico_llama, monkeypatch)
    score(pico_llama, asked((10, 10, 10), (4, 4, 4, 4)))
    assert passes == [3 * 24]  # one pass: 11 of the prompt, then 4 ends of 3, in a width of eights


def test_what_hooks_into_the_model_sees_whole_rows(pico_llama: LlamaForCausalLM) -> None:
    """A guard that counts positions: it changes what the model computes from the fifth token of a row on."""

    def guard(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        late = torch.arange(output.shape[1])[None, :, None] >= 4
        return torch.where(late, output * 3, output)

    handle = pico_llama.model.layers[0].mlp.register_forward_hook(guard)
    guarded = score(pico_llama, asked() + letters())
    expected = full(pico_llama, asked() + letters())
    handle.remove()
    assert_same(guarded, expected)
    free = score(pico_llama, asked())
    assert np.abs(free[1][2].logp - guarded[1][2].logp).max() > 0.01, "the guard changes something"


def test_the_model_is_left_in_its_mode(model_of: Callable[..., PreTrainedModel]) -> None:
    model = model_of("gpt2")  # with dropout
    model.train()
    questions = asked((5,)) + letters((5,))
    assert_same(score(model, questions), score(model, questions))
    assert model.training
