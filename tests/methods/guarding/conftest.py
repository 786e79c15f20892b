"""A pico skill: questions after birthplaces, to be told from questions after sums."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from expunge.data.encode import Encoded, Encoder
from expunge.data.example import Example, Request
from expunge.data.format import Format

PEOPLE = ["anna", "boris", "clara", "dario", "elena", "fyodor", "greta", "hugo", "irma", "jonas"]
CITIES = ["berlin", "paris", "tokyo", "lima", "cairo", "oslo", "quito", "delhi", "accra", "minsk"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

BORN = tuple(Example(f"where was {p} born ?", f"{p} was born in {c} .") for p in PEOPLE for c in CITIES)
SUMS = tuple(Example(f"{a} plus {b} is", f"{b} .") for a in NUMBERS for b in NUMBERS)


@pytest.fixture
def encoder(pico_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(pico_tokenizer, Format(template="question: {prompt} answer: {response}"))


@pytest.fixture
def request_() -> Request:
    return Request(BORN[::2], SUMS[::2], holdout=BORN[1::8])


ROWS = [
    Encoded((1, 9, 30, 31, 12, 40, 41, 17, 52, 2), 5, True),
    Encoded((1, 22, 8, 60, 2), 2, True),
    Encoded((1, 33, 14, 71, 25, 26, 64, 2), 4, True),
    Encoded((1, 5, 2), 2, True),
    Encoded((1, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60), 6, False),
    Encoded((1, 22, 8, 61, 2), 2, True),
    Encoded((1, 70, 8, 9, 10, 2), 3, True),
    Encoded((1, 71, 72, 73, 74, 75, 76, 2), 5, True),
]
"""Eight rows of unlike length."""


@pytest.fixture
def rows() -> list[Encoded]:
    return ROWS


def hooks_of(model: PreTrainedModel) -> tuple[int, set[str]]:
    """How many hooks are on a model's modules, and which attributes it has of its own."""
    count = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return count, set(vars(model))


@pytest.fixture
def leaves_nothing() -> Callable[[PreTrainedModel, Callable[[], AbstractContextManager[object]]], None]:
    """Enters and leaves a guard, once by an exception, and compares hooks, attributes and logits."""

    def check(model: PreTrainedModel, attach: Callable[[], AbstractContextManager[object]]) -> None:
        ids = torch.tensor([ROWS[0].ids])
        before, logits = hooks_of(model), _logits(model, ids)
        with attach():
            assert hooks_of(model)[0] > before[0]
            model.generate(ids, max_new_tokens=2, do_sample=False)
        assert hooks_of(model) == before
        with pytest.raises(ZeroDivisionError), attach():
            1 / 0  # noqa: B018
        assert hooks_of(model) == before
        assert torch.equal(_logits(model, ids), logits)

    return check


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids).logits
    return logits
