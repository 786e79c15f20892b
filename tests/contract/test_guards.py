"""Every guard keeps the contract: one loop over the closed list."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from expunge.data.encode import Encoded, Encoder, collate
from expunge.data.example import Example, Request
from expunge.data.format import Format
from expunge.errors import ExpungeError
from expunge.evaluation.engine import Engine
from expunge.guarding import life
from expunge.methods import METHODS
from expunge.methods.base import GuardingMethod, State
from expunge.models.logprobs import labelled_logits
from expunge.recipes import recipe

GUARDS = [cls for cls in METHODS.values() if issubclass(cls, GuardingMethod)]
PEOPLE = ["anna", "boris", "clara", "dario", "elena", "fyodor", "greta", "hugo", "irma", "jonas"]
CITIES = ["berlin", "paris", "tokyo", "lima", "cairo", "oslo", "quito", "delhi", "accra", "minsk"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
BORN = tuple(Example(f"where was {p} born ?", f"{p} was born in {c} .") for p in PEOPLE for c in CITIES[::2])
SUMS = tuple(Example(f"{a} plus {b} is", f"{b} .") for a in NUMBERS for b in NUMBERS[::2])
REQUEST = Request(BORN, SUMS)
ASKED = ["where was anna born ?", "one plus two is", "where was greta born ?", "what", "the blue bird of the pilot",
         "where was hugo born ?", "ten plus ten is", "where is the cat of boris and the dog of clara ?"]  # fmt: skip
REPLY = "i do not know that ."

Rows = Sequence[tuple[int, ...]]


def spec(cls: type[GuardingMethod], **fields: Any) -> GuardingMethod:
    """The method with its defaults, but for texts that the pico tokenizer lacks."""
    texts = {"abstention": REPLY, "target": "anna and boris"}
    return cls(**{name: text for name, text in texts.items() if name in cls.model_fields}, **fields)


@pytest.fixture
def encoder(pico_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(pico_tokenizer, Format(template="question: {prompt} answer: {response}"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: tmp_path_factory.mktemp(name))


@pytest.fixture(params=GUARDS, ids=lambda c: c.method_name())
def fitted(
    request: pytest.FixtureRequest, pico_llama: PreTrainedModel, encoder: Encoder, folder: Callable[[str], Path]
) -> tuple[GuardingMethod, State]:
    """The method and its state, fitted once and read back from the files that a run would have left."""
    method = spec(request.param)
    out = folder(method.method_name())
    if not (out / life.FILE).exists():
        assets = out / "made"
        assets.mkdir()
        state = life.fit(method, pico_llama, REQUEST, encoder, build_objective=lambda *_: lambda _: 0.0, assets=assets)
        life.save(out, state, encoder)
    return method, life.read(out)


def written(model: PreTrainedModel, prompts: Rows, *, side: Any = "left", **options: Any) -> list[list[int]]:
    """What is generated behind each prompt."""
    tokens = collate([Encoded(ids, 1, False) for ids in prompts], 0, side)
    options = {"max_new_tokens": 9, "do_sample": False} | options
    found = model.generate(input_ids=tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT, **options)
    answers = []
    for row in found[:, tokens.input_ids_BT.shape[1] :].tolist():
        answers.append(row[: row.index(2)] if 2 in row else row)
    return answers


def scored(model: PreTrainedModel, rows: Sequence[Encoded], side: Any) -> list[list[float]]:
    with torch.no_grad():
        found = labelled_logits(model, collate(rows, 0, side))
    logp_N = found.logits_NV.log_softmax(-1).gather(1, found.labels_N[:, None])[:, 0]
    return [logp_N[found.row_N == row].tolist() for row in range(len(rows))]


def test_a_row_is_answered_alone_as_in_any_batch(
    fitted: tuple[GuardingMethod, State], pico_llama: PreTrainedModel, encoder: Encoder
) -> None:
    method, state = fitted
    prompts = encoder.encode_prompts(ASKED)
    with method.attach(pico_llama, state, encoder):
        alone = [written(pico_llama, [ids])[0] for ids in prompts]
        assert written(pico_llama, prompts) == alone
        assert written(pico_llama, prompts[::-1]) == alone[::-1]


def test_with_and_without_a_cache_and_with_lookup_the_same_is_written(
    fitted: tuple[GuardingMethod, State], pico_llama: PreTrainedModel, encoder: Encoder
) -> None:
    method, state = fitted
    prompts = encoder.encode_prompts(ASKED)
    with method.attach(pico_llama, state, encoder):
        alone = [written(pico_llama, [ids])[0] for ids in prompts]
        assert written(pico_llama, prompts, use_cache=False) == alone
        assert [written(pico_llama, [ids], prompt_lookup_num_tokens=3)[0] for ids in prompts] == alone


def test_with_an_assistant_the_same_is_written_and_drafts_of_its_own_layers_are_refused_and_leave_the_model_whole(
    fitted: tuple[GuardingMethod, State],
    pico_llama: PreTrainedModel,
    encoder: Encoder,
    model_of: Callable[..., PreTrainedModel],
) -> None:
    """transformers takes layers out of the config while the model's own first layers draft, and after an error for good."""
    method, state = fitted
    prompts, assistant = encoder.encode_prompts(ASKED)[::3], model_of("llama", seed=5)
    with method.attach(pico_llama, state, encoder):
        alone = [written(pico_llama, [ids])[0] for ids in prompts]
        assert [written(pico_llama, [ids], assistant_model=assistant)[0] for ids in prompts] == alone
        with pytest.raises(ExpungeError, match="without assistant_early_exit"):
            written(pico_llama, prompts[:1], assistant_early_exit=1)
        assert [written(pico_llama, [ids])[0] for ids in prompts] == alone


def test_beams_and_returned_sequences_belong_to_their_query(
    fitted: tuple[GuardingMethod, State], pico_llama: PreTrainedModel, encoder: Encoder
) -> None:
    method, state = fitted
    prompts = encoder.encode_prompts(ASKED[:4])
    options = {"num_beams": 3, "num_return_sequences": 2}
    with method.attach(pico_llama, state, encoder):
        alone = [written(pico_llama, [ids], **options) for ids in prompts]
        assert written(pico_llama, prompts, **options) == [row for rows in alone for row in rows]


def test_a_row_is_scored_alone_as_in_any_batch_under_padding_on_either_side(
    fitted: tuple[GuardingMethod, State], pico_llama: PreTrainedModel, encoder: Encoder
) -> None:
    method, state = fitted
    rows = encoder.encode_many([*BORN[:3], *SUMS[:3], Example("what", "red ."), Example("who is the blue bird", "i am not .")])
    with method.attach(pico_llama, state, encoder):
        alone = [scored(pico_llama, [row], "right")[0] for row in rows]
        for side in ("right", "left"):
            for one, other in zip(scored(pico_llama, rows, side), alone, strict=True):
                assert one == pytest.approx(other, abs=1e-4)


def test_the_guard_acts_on_the_forget_set(
    fitted: tuple[GuardingMethod, State], pico_llama: PreTrainedModel, encoder: Encoder
) -> None:
    method, state = fitted
    prompts = encoder.encode_prompts([str(e.prompt) for e in BORN[::5]])
    plain = written(pico_llama, prompts)
    guard = life.attach(pico_llama, method, state, encoder)
    assert written(pico_llama, prompts) != plain
    guard.detach()
    assert written(pico_llama, prompts) == plain


def test_gradients_are_recorded_after_scoring_without_them(
    fitted: tuple[GuardingMethod, State], pico_llama: PreTrainedModel, encoder: Encoder
) -> None:
    """Scoring runs in inference mode; what a guard keeps from its first pass must not be unfit for a backward pass later."""
    method, state = fitted
    rows = encoder.encode_many([*BORN[:2], *SUMS[:2]])
    with method.attach(pico_llama, state, encoder):
        engine = Engine(pico_llama, encoder.pad_id)
        engine.score(rows)
        assert all(norm == norm and norm >= 0 for norm in engine.gradient_norms(rows))


def test_nothing_is_left_after_detaching_or_an_error(
    fitted: tuple[GuardingMethod, State], pico_llama: PreTrainedModel, encoder: Encoder
) -> None:
    method, state = fitted
    before = _traces(pico_llama)
    with method.attach(pico_llama, state, encoder):
        assert _traces(pico_llama) != before
    assert _traces(pico_llama) == before
    with pytest.raises(ZeroDivisionError), method.attach(pico_llama, state, encoder):
        1 / 0  # noqa: B018
    assert _traces(pico_llama) == before


@pytest.mark.parametrize("cls", GUARDS, ids=lambda c: c.method_name())
def test_it_explains_itself_and_has_a_recipe_for_the_lab(cls: type[GuardingMethod]) -> None:
    assert "arXiv" in cls.paper
    assert cls.formula
    assert cls.cost
    assert cls.__doc__
    assert all(info.description for name, info in cls.model_fields.items() if name != "name")
    cls.model_validate(recipe(f"lab/{cls.method_name()}")["method"])


def _traces(model: PreTrainedModel) -> tuple[int, set[str]]:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()), set(vars(model))
