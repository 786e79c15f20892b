"""What a corrupted prompt still tells the model: nearest tokens, the probe, repetition; and what a cache is told apart by."""

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge import ExpungeError
from expunge.data.encode import Encoder, Format
from expunge.data.example import Example, Request
from expunge.evaluation.studies import corrupted_tokens, last_logits, linear_probe, repeat_test
from expunge.guarding import life
from expunge.methods import EmbeddingCorruption

FORGET = tuple(Example(f"where was {name} born ?", "in lima .") for name in ("anna", "boris", "clara", "dario", "elena"))
RETAIN = tuple(Example(f"{a} plus {b} is", "nine .") for a in ("one", "two", "six") for b in ("four", "five", "ten"))


@pytest.fixture
def encoder(pico_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(pico_tokenizer, Format(template="question: {prompt} answer: {response}"))


@pytest.fixture
def guarded(pico_llama: LlamaForCausalLM, encoder: Encoder) -> Iterator[LlamaForCausalLM]:
    method = EmbeddingCorruption(gate="text", tune="nothing", strength=30.0, canaries=0, false_positive_rate=0.2)
    life.attach(pico_llama, method, life.fit(method, pico_llama, Request(FORGET, RETAIN), encoder), encoder)
    yield pico_llama
    pico_llama.expunge_guard.detach()


def test_corrupted_tokens_are_those_of_flagged_prompts_with_what_they_are_read_as(
    guarded: LlamaForCausalLM, encoder: Encoder
) -> None:
    flagged, plain = encoder.encode_prompts(["where was anna born ?", "two plus ten is"])
    guard = guarded.expunge_guard
    found = corrupted_tokens(guarded, flagged)
    assert [token for token, _ in found] == [encoder.tokenizer.decode([i]) for i in flagged[:-1]]
    assert any(token != near for token, near in found)
    assert corrupted_tokens(guarded, plain) == ()
    weak = guard.state.having({"strength": torch.tensor(1e-6)})
    guard.detach()
    assert corrupted_tokens(guarded, flagged) == ()
    life.attach(guarded, guard.method, weak, encoder)
    assert all(token == near for token, near in corrupted_tokens(guarded, flagged))


def test_the_probe_reads_the_answer_from_logits_that_hold_it_and_not_from_others() -> None:
    answers = [i % 4 for i in range(80)]
    noise = torch.randn(80, 30, generator=torch.Generator().manual_seed(0))
    assert linear_probe(noise + 5 * torch.nn.functional.one_hot(torch.tensor(answers), 30), answers) == 1.0
    assert linear_probe(noise, answers) < 0.5
    with pytest.raises(ExpungeError, match="one and the same answer"):
        linear_probe(noise[:4], [0, 0, 1, 2])


def test_logits_and_repetition_go_through_the_guard(guarded: LlamaForCausalLM, encoder: Encoder) -> None:
    prompts = encoder.encode_prompts(["where was anna born ?", "two plus ten is"])
    through = last_logits(guarded, prompts)
    assert guarded.expunge_guard.counts.acted == 1
    assert all(0 <= share <= 1 for share in repeat_test(guarded, encoder, ["where was anna born ?"], max_new_tokens=4))
    guarded.expunge_guard.detach()
    plain = last_logits(guarded, prompts)
    assert torch.equal(through[1], plain[1])
    assert not torch.allclose(through[0], plain[0])
    life.attach(guarded, EmbeddingCorruption(gate="text", tune="nothing", canaries=0), _state(guarded, encoder), encoder)


def _state(model: LlamaForCausalLM, encoder: Encoder) -> object:
    method = EmbeddingCorruption(gate="text", tune="nothing", canaries=0, false_positive_rate=0.2)
    return life.fit(method, model, Request(FORGET, RETAIN), encoder)


def test_a_cache_is_told_apart_by_guard_and_decision(guarded: LlamaForCausalLM, encoder: Encoder) -> None:
    one, two, plain, other = encoder.encode_prompts(
        ["where was anna born ?", "where was anna born in lima ?", "two plus ten is", "six plus ten is"]
    )
    guard = guarded.expunge_guard
    assert guard.salt(plain) == guard.salt(other)  # both are read as they are
    assert len({guard.salt(one), guard.salt(two), guard.salt(plain)}) == 3
    salt = guard.salt(one)
    guard.detach()
    life.attach(guarded, guard.method, guard.state.having({"strength": torch.tensor(2.0)}), encoder)
    assert guarded.expunge_guard.salt(one) != salt
    assert guarded.expunge_guard.salt(plain) != guard.salt(plain)
