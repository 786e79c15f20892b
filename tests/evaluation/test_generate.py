"""Batched greedy generation equals row by row, and equals what the teacher-forced pass foresees."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from expunge.data.encode import Encoded
from expunge.evaluation import generate as generate_module
from expunge.evaluation.engine import Engine
from expunge.evaluation.generate import generate
from expunge.evaluation.shortcuts import shortcuts_of

Ids = tuple[int, ...]
PAD, END = 0, 2


def prompts(count: int = 37) -> list[Ids]:
    rng = np.random.default_rng(0)
    return [(1, *rng.integers(4, 60, size=int(rng.integers(1, 15))).tolist()) for _ in range(count)]


def by_hand(model: LlamaForCausalLM, prompt: Ids, steps: int) -> Ids:
    """Greedy decoding with full passes, no cache, no padding."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == END:
            break
        ids.append(token)
    return tuple(ids[len(prompt) :])


@pytest.fixture
def stopping(pico_llama: LlamaForCausalLM) -> LlamaForCausalLM:
    """A pico model that likes to end: some answers end early, some do not."""
    with torch.no_grad():
        pico_llama.lm_head.weight[END] *= 3
    return pico_llama


@pytest.mark.parametrize("max_rows", [1, 5, 64])
def test_batches_give_what_each_prompt_gives_alone(stopping: LlamaForCausalLM, max_rows: int) -> None:
    asked = prompts()
    expected = [by_hand(stopping, prompt, 8) for prompt in asked]
    lengths = {len(answer) for answer in expected}
    assert 8 in lengths
    assert min(lengths) < 8
    assert generate(stopping, asked, pad_id=PAD, end_ids=[END], max_new_tokens=8, max_rows=max_rows) == expected


def test_equal_prompts_are_continued_once(stopping: LlamaForCausalLM) -> None:
    rows = []
    stopping.register_forward_pre_hook(lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    answers = generate(stopping, prompts(3) * 4, pad_id=PAD, end_ids=[END], max_new_tokens=2)
    assert max(rows) == 3
    assert answers[:3] * 4 == answers


def counted(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that fills with the number of tokens that each pass predicts. (Not by hooks: what hooks in is given each prompt in
    one go.)"""
    shortcuts_of(model)  # measured before, once
    rows: list[int] = []
    inner = model.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        output = inner(*arguments, **named)
        rows.append(output.logits.numel() // output.logits.shape[-1])
        return output

    monkeypatch.setattr(model, "forward", forward)
    return rows


@pytest.mark.parametrize("count", [60, 65, 400])
def test_large_sets_are_never_generated_row_by_row(
    stopping: LlamaForCausalLM, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = counted(stopping, monkeypatch)
    generate(stopping, prompts(count), pad_id=PAD, end_ids=[END], max_new_tokens=2)
    assert min(rows) >= 16
    assert sum(rows) <= 2 * count


def test_prompts_near_the_models_limit_share_batches_too(pico_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms of 1 to 100 tokens, which most answers fill."""
    rng = np.random.default_rng(0)
    asked = [(1, *rng.integers(4, 60, size=int(length)).tolist()) for length in rng.integers(27, 127, size=400)]
    rows = counted(pico_llama, monkeypatch)
    answers = generate(pico_llama, asked, pad_id=PAD, end_ids=[END], max_new_tokens=100, max_length=128)
    monkeypatch.undo()
    assert len(rows) <= 7 * 101, "seven batches of 64, each no longer than its longest answer"
    assert sum(rows) <= 1.5 * sum(len(answer) + 1 for answer in answers), "rows leave the batch when they are done"
    filled = [len(answer) == 128 - len(prompt) for prompt, answer in zip(asked, answers, strict=True)]
    assert 0.5 < np.mean(filled) < 1
    chosen = range(0, 400, 40)
    assert [answers[i] for i in chosen] == [by_hand(pico_llama, asked[i], 128 - len(asked[i])) for i in chosen]


def test_what_hooks_in_sees_each_prompt_once_and_whole(stopping: LlamaForCausalLM) -> None:
    """A guard that decides by the prompt must not take a prompt and half an answer for one."""
    widths = []
    handle = stopping.register_forward_pre_hook(lambda _, __, named: widths.append(named["input_ids"].shape[1]), with_kwargs=True)
    asked = prompts(20)
    longest = max(map(len, asked))
    answers = generate(stopping, asked, pad_id=PAD, end_ids=[END], max_new_tokens=8, max_length=longest)
    handle.remove()
    assert {width for width in widths if width > 1} <= {len(prompt) for prompt in asked}
    assert answers == generate(stopping, asked, pad_id=PAD, end_ids=[END], max_new_tokens=8, max_length=longest)


def test_the_models_own_penalties_and_sampling_are_off(stopping: LlamaForCausalLM) -> None:
    expected = [by_hand(stopping, prompt, 6) for prompt in prompts(8)]
    stopping.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, no_repeat_ngram_size=1)
    assert generate(stopping, prompts(8), pad_id=PAD, end_ids=[END], max_new_tokens=6) == expected


def test_a_full_context_ends_an_answer_and_no_neighbors(stopping: LlamaForCausalLM) -> None:
    asked = prompts(20)
    longest = max(map(len, asked))
    answers = generate(stopping, asked, pad_id=PAD, end_ids=[END], max_new_tokens=8, max_length=longest)
    assert answers[max(range(20), key=lambda i: len(asked[i]))] == ()
    for prompt, answer in zip(asked, answers, strict=True):
        assert answer == by_hand(stopping, prompt, min(8, longest - len(prompt)))


def test_all_hits_are_exactly_the_greedy_answer(stopping: LlamaForCausalLM) -> None:
    """Accuracy from one teacher-forced pass: every token and the end are greedy hits if and only if generation writes them."""
    asked = prompts(30)
    greedy = generate(stopping, asked, pad_id=PAD, end_ids=[END], max_new_tokens=8)
    ended = [(p, a) for p, a in zip(asked, greedy, strict=True) if len(a) < 8]
    assert len(ended) > 5
    engine = Engine(stopping, PAD)
    right = engine.score([Encoded((*p, *a, END), len(p), True) for p, a in ended])
    assert all(stats.hit.all() for stats in right)
    wrong = [Encoded((*p, *a[:-1], (a[-1] + 1) % 60 + 4, END), len(p), True) for p, a in ended if a]
    assert not any(stats.hit.all() for stats in engine.score(wrong))
    longer = [Encoded((*p, *a, 7, END), len(p), True) for p, a in ended]
    assert not any(stats.hit.all() for stats in engine.score(longer))


def test_answers_that_repeat_themselves_or_each_other_take_fewer_passes_than_tokens(
    pico_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is what plain greedy decoding writes, whatever was guessed: here mostly from four tokens."""
    with torch.no_grad():
        pico_llama.lm_head.weight[7:] = pico_llama.lm_head.weight[:4] = 0
    asked = prompts(6)
    passes = counted(pico_llama, monkeypatch)
    answers = generate(pico_llama, asked, pad_id=PAD, end_ids=[END], max_new_tokens=80)
    drafted = len(passes)
    monkeypatch.setattr(generate_module, "share", lambda model: 0.999)
    assert generate(pico_llama, asked, pad_id=PAD, end_ids=[END], max_new_tokens=80) == answers
    assert len(passes) - drafted == max(len(answer or ()) for answer in answers) == 80, "without guesses one pass a token"
    assert drafted < 64
    monkeypatch.undo()
    assert answers == [by_hand(pico_llama, prompt, 80) for prompt in asked]


def test_answers_known_by_heart_are_guessed_for_others(pico_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        pico_llama.lm_head.weight[40:] = pico_llama.lm_head.weight[:4] = 0
    asked = prompts(6)
    answers = [answer or () for answer in generate(pico_llama, asked, pad_id=PAD, end_ids=[END], max_new_tokens=40)]
    passes = counted(pico_llama, monkeypatch)
    alone = generate(pico_llama, asked[:1], pad_id=PAD, end_ids=[END], max_new_tokens=40)
    unaided = len(passes)
    other = (*asked[0], *answers[0])
    known = [(), answers[0]]
    both = generate(pico_llama, [asked[0], other[1:41]], pad_id=PAD, end_ids=[END], max_new_tokens=40, known=known)
    assert (alone[0], both[0]) == (answers[0], answers[0])
    assert len(passes) - unaided < unaided
