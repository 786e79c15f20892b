"""Key Space Detection with `check: all_steps`: only positions whose next token the model itself predicts in that row count."""

import itertools
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from expunge.data.encode import Encoded, Encoder, collate
from expunge.data.example import Request
from expunge.methods import KeySpaceDetection
from expunge.methods.base import State
from expunge.methods.guarding.key_boxes import KeyBox
from expunge.models.blocks import blocks_of
from expunge.models.hooks import capture
from expunge.models.logprobs import labelled_logits

REPLY = "i do not know that ."
WORDS = ("where", "who", "what"), ("anna", "boris", "clara", "one", "two", "red"), ("born", "plus")
ASKED = [f"{a} was {b} {c} ?" for a, b, c in itertools.product(*WORDS)]


@pytest.fixture
def guard(pico_llama: PreTrainedModel, request_: Request, encoder: Encoder) -> tuple[KeySpaceDetection, State]:
    """A radius at which some answers are closed at the prompt, some on the way and some never."""
    method = KeySpaceDetection(abstention=REPLY, check="all_steps", alpha=0.75)
    return method, method.fit(pico_llama, request_, encoder)


def answers(model: PreTrainedModel, prompts: list[tuple[int, ...]], rows: int, **options: Any) -> list[list[int]]:
    """Generated tokens up to and with the end token, in batches of so many rows."""
    found = []
    for start in range(0, len(prompts), rows):
        tokens = collate([Encoded(ids, 1, False) for ids in prompts[start : start + rows]], 0, "left")
        options = {"max_new_tokens": 12, "do_sample": False} | options
        written = model.generate(input_ids=tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT, **options)
        for row in written[:, tokens.input_ids_BT.shape[1] :].tolist():
            found.append(row[: row.index(2) + 1] if 2 in row else row)
    return found


def is_reply(row: list[int], encoder: Encoder) -> bool:
    return REPLY in encoder.tokenizer.decode(row)


@pytest.mark.parametrize("ends", [[2], [2, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50]])
def test_the_same_answers_are_closed_in_any_batch(
    ends: list[int], guard: tuple[KeySpaceDetection, State], pico_llama: PreTrainedModel, encoder: Encoder
) -> None:
    """Rows that have ended stand beside longer rows, where padding is fed back to the model."""
    method, state = guard
    prompts = encoder.encode_prompts(ASKED)
    with method.attach(pico_llama, state, encoder):
        alone = answers(pico_llama, prompts, 1, eos_token_id=ends, pad_token_id=0)
        batch = answers(pico_llama, prompts, 64, eos_token_id=ends, pad_token_id=0)
    closed = [is_reply(row, encoder) for row in alone]
    assert 0 < sum(closed) < len(prompts)
    assert [is_reply(row, encoder) for row in batch] == closed
    if len(ends) > 1:
        assert len({len(row) for row in alone}) > 2


def test_an_openly_written_answer_is_scored_as_open(
    guard: tuple[KeySpaceDetection, State], pico_llama: PreTrainedModel, encoder: Encoder
) -> None:
    """Generation never feeds the last token back, so scoring must not judge it."""
    method, state = guard
    prompts = encoder.encode_prompts(ASKED)
    with method.attach(pico_llama, state, encoder):
        written = answers(pico_llama, prompts, 64)
        rows = [
            Encoded((*ids, *row), len(ids), row[-1] == 2)
            for ids, row in zip(prompts, written, strict=True)
            if not is_reply(row, encoder)
        ]
        assert len(rows) > 5
        for side in ("left", "right"):
            found = labelled_logits(pico_llama, collate(rows, 0, side))
            best = found.logits_NV.argmax(-1) == found.labels_N
            assert best.all()  # greedy answers: a closed row would spell the abstention


def test_the_last_token_is_not_judged_and_the_one_before_it_is(pico_llama: PreTrainedModel, encoder: Encoder) -> None:
    ids = torch.tensor([[1, 9, 30, 31, 12, 40, 41, 17]])
    for position, closes in ((7, False), (6, True), (4, True), (3, False)):
        with torch.no_grad(), capture(pico_llama, {"key": blocks_of(pico_llama).key(1)}) as seen:
            pico_llama(ids)
        key_F = seen["key"][0, position]
        one = torch.ones(1, dtype=torch.float64)
        state = State({"layer": torch.tensor([1]), "centre": key_F[None], "unit": torch.ones_like(key_F)[None], "k": one,
                       "radius": 0.01 * one, "count": torch.tensor(9)})  # fmt: skip
        method = KeySpaceDetection(abstention=REPLY, check="all_steps")
        with method.attach(pico_llama, state, encoder):
            logits = labelled_logits(pico_llama, collate([Encoded(tuple(ids[0].tolist()), 5, False)], 0)).logits_NV
        assert bool(logits[0].max() == 0) == closes


def test_candidates_that_the_model_rejects_are_not_judged(
    guard: tuple[KeySpaceDetection, State], pico_llama: PreTrainedModel, encoder: Encoder
) -> None:
    """Lookup decoding tries tokens of the prompt again; greedy answers and decisions are those without it."""
    method, state = guard
    prompts = encoder.encode_prompts(ASKED)
    with method.attach(pico_llama, state, encoder):
        plain = answers(pico_llama, prompts, 1)
        assert answers(pico_llama, prompts, 1, prompt_lookup_num_tokens=4) == plain
    assert 0 < sum(is_reply(row, encoder) for row in plain) < len(plain)


def test_a_rejected_candidate_inside_the_box_does_not_close_and_an_accepted_one_does(
    pico_llama: PreTrainedModel, encoder: Encoder
) -> None:
    prompt = torch.tensor([[1, 9, 30, 31, 12]])
    plain = pico_llama.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)

    def state_at(ids: torch.Tensor, position: int) -> State:
        with torch.no_grad(), capture(pico_llama, {"key": blocks_of(pico_llama).key(1)}) as seen:
            pico_llama(ids)
        key_F, one = seen["key"][0, position], torch.ones(1, dtype=torch.float64)
        return State({"layer": torch.tensor([1]), "centre": key_F[None], "unit": torch.ones_like(key_F)[None], "k": one,
                      "radius": 0.01 * one, "count": torch.tensor(9)})  # fmt: skip

    def closed(state: State, candidate: int) -> bool:
        """With an assistant that always proposes one and the same token."""

        class Proposes:
            requires_model_outputs = False

            def get_candidates(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, None]:
                offered = candidate if candidate >= 0 else int(plain[0, input_ids.shape[1]])
                room = input_ids.shape[1] < plain.shape[1] - 1
                return (torch.cat([input_ids, torch.tensor([[offered]])], dim=1) if room else input_ids), None

            def update_candidate_strategy(self, *args: Any) -> None:
                pass

        method = KeySpaceDetection(abstention=REPLY, check="all_steps")
        with method.attach(pico_llama, state, encoder), pytest.MonkeyPatch.context() as patch:
            patch.setattr(pico_llama, "_get_candidate_generator", lambda **_: Proposes())
            written = pico_llama.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=1)
        return is_reply(written[0].tolist(), encoder)

    wrong = next(token for token in range(20, 60) if token not in plain[0].tolist())
    rejected = torch.cat([plain[:, :7], torch.tensor([[wrong]])], dim=1)
    assert not closed(state_at(rejected, 7), wrong)
    assert closed(state_at(plain, 7), -1)
    assert closed(state_at(plain, 11), -1)
    assert not closed(state_at(plain, 12), -1)  # the last token of the answer


def test_what_is_kept_of_an_inference_pass_serves_a_pass_with_gradients() -> None:
    box = KeyBox(torch.zeros(3), torch.ones(3), 1.0, 9)
    with torch.inference_mode():
        assert not box.to(torch.device("meta")).centre_F.is_inference()
