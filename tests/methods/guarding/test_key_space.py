"""Key Space Detection: the box, its calibration, decisions per row, and what becomes of a closed query."""

import math
import threading
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from expunge import ExpungeError
from expunge.data.encode import Encoded, Encoder, collate
from expunge.data.example import Example, Request
from expunge.evaluation.engine import Engine
from expunge.evaluation.generate import generate as evaluated
from expunge.evaluation.generate import sample
from expunge.evaluation.nucleus import Nucleus
from expunge.methods import KeySpaceDetection
from expunge.methods.base import State
from expunge.methods.guarding.key_boxes import SLACK, KeyBox, calibrate, samuelson, share_inside
from expunge.models.activations import Moments
from expunge.models.blocks import blocks_of
from expunge.models.hooks import capture
from expunge.models.logprobs import labelled_hidden, labelled_logits

REPLY = "i do not know that ."


def spec(**fields: Any) -> KeySpaceDetection:
    return KeySpaceDetection(**{"abstention": REPLY, **fields})


@pytest.fixture
def closed_prompts(encoder: Encoder) -> list[tuple[int, ...]]:
    return encoder.encode_prompts(["where was anna born ?", "where was jonas born ?", "where was elena born ?"])


@pytest.fixture
def open_prompts(encoder: Encoder) -> list[tuple[int, ...]]:
    return encoder.encode_prompts(["one plus two is", "ten plus ten is", "who is the blue bird of the pilot"])


@pytest.fixture
def fitted(pico_llama: PreTrainedModel, request_: Request, encoder: Encoder) -> tuple[KeySpaceDetection, State]:
    method = spec()
    return method, method.fit(pico_llama, request_, encoder)


def test_k_is_the_least_radius_that_holds_every_vector() -> None:
    vectors = torch.randn(60, 33, generator=torch.Generator().manual_seed(0)) * torch.rand(33) + 5
    box = KeyBox.of_vectors(vectors)
    mean, std = vectors.double().mean(0), vectors.double().std(0)
    low, high = 0.0, 100.0
    for _ in range(60):  # bisection, as the published code does it
        middle = (low + high) / 2
        holds = bool(((vectors - mean).abs() <= middle * std).all())
        low, high = (low, middle) if holds else (middle, high)
    assert box.k == pytest.approx(high, rel=1e-6)
    assert share_inside(box.distance(vectors), box.k * (1 + 1e-5)) == 1.0
    assert share_inside(box.distance(vectors), box.k * (1 - 1e-5)) == pytest.approx(59 / 60)
    assert box.k <= samuelson(60) == pytest.approx(59 / math.sqrt(60))


def test_prompts_that_are_the_same_to_a_layer_are_refused(pico_llama: PreTrainedModel, encoder: Encoder) -> None:
    same = tuple(Example(f"where was {name} born ?", "i was") for name in ("nobody", "someone", "anyone", "everyone"))
    for sides in ("deviation", "range"):
        with pytest.raises(ExpungeError, match="the 3 forget prompts that the box is fitted on are all the same to layer 1"):
            spec(sides=sides).fit(pico_llama, Request(same, same), encoder)


def test_a_box_of_a_probe_is_that_of_its_vectors() -> None:
    vectors = torch.randn(60, 700, generator=torch.Generator().manual_seed(0)) * 3 - 1
    moments = Moments.empty(2, 700)
    for tile in vectors.split(13):
        moments.update(1, tile)
    one, other = KeyBox.of_moments(moments, 1), KeyBox.of_vectors(vectors)
    torch.testing.assert_close(one.centre_F, other.centre_F)
    torch.testing.assert_close(one.unit_F, other.unit_F)
    assert one.k == pytest.approx(other.k)
    assert (one.n, other.n) == (60, 60)


def test_the_tightest_box_holds_every_vector_at_radius_one_and_touches_both_ends_of_every_dimension() -> None:
    vectors = torch.randn(60, 33, generator=torch.Generator().manual_seed(0)).exp() * torch.rand(33)
    moments = Moments.empty(1, 33)
    moments.update(0, vectors)
    box, other = KeyBox.of_vectors(vectors, "range"), KeyBox.of_moments(moments, 0, "range")
    assert torch.equal(box.centre_F, other.centre_F)
    assert torch.equal(box.unit_F, other.unit_F)
    assert (box.k, other.k) == (1.0, 1.0)
    assert share_inside(box.distance(vectors), 1 + 1e-5) == 1.0
    for end in (vectors.amin(0), vectors.amax(0)):  # a step beyond either end of any one dimension is outside
        beyond = box.centre_F.repeat(33, 1) + torch.diag(1.001 * (end - box.centre_F))
        assert share_inside(box.distance(beyond), 1.0) == 0.0


def test_a_dimension_that_never_moved_lets_through_only_what_does_not_move_either() -> None:
    vectors = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    vectors[:, 1] = 2.0
    box = KeyBox.of_vectors(vectors)
    assert math.isfinite(box.k)
    assert box.distance(torch.tensor([[0.0, 2.0, 0.0], [0.0, 2.1, 0.0]])).tolist()[1] > 1e4


class TestCalibration:
    forget = torch.linspace(0.5, 1.2, 50)

    def test_the_radius_lies_between_the_sets_but_within_a_margin(self) -> None:
        assert calibrate(self.forget, torch.linspace(1.5, 9, 100), 0.0) == pytest.approx(math.sqrt(1.2 * 1.5), rel=1e-5)
        assert calibrate(self.forget, torch.linspace(50, 90, 100), 0.0) == pytest.approx(1.8 * (1 + SLACK))

    @pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.2, 0.9])
    def test_no_more_than_the_stated_share_of_retain_prompts_is_closed(self, rate: float) -> None:
        retain = torch.linspace(0.6, 9, 100)
        radius = calibrate(self.forget, retain, rate)
        assert share_inside(retain, radius) <= rate
        if calibrate(self.forget, retain, 0.0) < 1.2 <= retain[int(100 * rate)]:
            assert share_inside(self.forget, radius) == 1.0

    def test_where_the_sets_overlap_the_stated_share_decides_and_is_used_up(self) -> None:
        retain = torch.linspace(0.6, 2, 100)
        radius = calibrate(self.forget, retain, 0.1)
        assert share_inside(retain, radius) == pytest.approx(0.1)
        assert share_inside(self.forget, radius) < 1.0

    def test_detection_can_be_asked_for_at_any_cost(self) -> None:
        retain = torch.linspace(0.6, 2, 100)
        radius = calibrate(self.forget, retain, 0.1, least_detected=0.9)
        assert share_inside(self.forget, radius) == pytest.approx(0.9)
        assert share_inside(retain, radius) > 0.1
        apart = torch.linspace(1.5, 9, 100)
        assert calibrate(self.forget, apart, 0.0, least_detected=0.5) == calibrate(self.forget, apart, 0.0)


def test_fitting_finds_the_skill_and_reports_held_out_shares(fitted: tuple[KeySpaceDetection, State]) -> None:
    method, state = fitted
    assert state["layer"].tolist() == [1]
    assert int(state["count"]) == 50  # the holdout set calibrates, so all forget prompts are fitted
    assert len(state["calibration.forget"]) == 13
    assert len(state["calibration.retain"]) == 50
    assert share_inside(state["calibration.forget"], 1.0) == 1.0
    assert share_inside(state["calibration.retain"], 1.0) == 0.0
    assert "Closes 100.0% of the measured forget queries and 0.0% of the retain queries" in method.summary(state)


def test_without_a_holdout_set_a_share_of_the_forget_prompts_is_held_out(
    pico_llama: PreTrainedModel, request_: Request, encoder: Encoder
) -> None:
    bare = Request(request_.forget, request_.retain)
    one, again, other = (spec(held_out=0.4, split_seed=s).fit(pico_llama, bare, encoder) for s in (0, 0, 1))
    assert (int(one["count"]), len(one["calibration.forget"])) == (30, 20)
    assert torch.equal(one["centre"], again["centre"])
    assert not torch.equal(one["centre"], other["centre"])


def test_radius_and_alpha_are_taken_as_they_are(pico_llama: PreTrainedModel, request_: Request, encoder: Encoder) -> None:
    bare = Request(request_.forget)
    direct, relative = (method.fit(pico_llama, bare, encoder) for method in (spec(radius=3.5), spec(alpha=1.25)))
    assert direct["radius"].tolist() == [3.5]
    assert relative["radius"].tolist() == pytest.approx([1.25 * float(relative["k"][0])])
    assert "calibration.retain" not in direct
    with pytest.raises(ExpungeError, match="give --retain"):
        spec().require(bare)
    with pytest.raises(ValidationError, match="give one of them"):
        spec(radius=1.0, alpha=1.0)


def test_a_probe_too_small_for_its_radius_warns(pico_llama: PreTrainedModel, request_: Request, encoder: Encoder) -> None:
    with pytest.warns(UserWarning, match=r"beyond 6.93.* any of the 50 fitted.*fit on 66 or more"):
        spec(radius=8.0).fit(pico_llama, request_, encoder)


def test_a_box_may_be_measured_by_its_range(pico_llama: PreTrainedModel, request_: Request, encoder: Encoder) -> None:
    method = spec(sides="range")
    state = method.fit(pico_llama, request_, encoder)
    assert state["k"].tolist() == [1.0]
    assert share_inside(state["calibration.forget"], 1.0) >= 0.9
    assert share_inside(state["calibration.retain"], 1.0) == 0.0
    assert "half ranges" in method.summary(state)
    wide = spec(sides="range", radius=8.0).fit(pico_llama, request_, encoder)  # Samuelson's bound is about deviations
    assert wide["radius"].tolist() == [8.0]
    assert torch.equal(wide["centre"], state["centre"])


def test_words_that_the_tokenizer_lacks_make_no_abstention(
    pico_llama: PreTrainedModel, request_: Request, encoder: Encoder
) -> None:
    with pytest.raises(ExpungeError, match=r"'I cannot answer that\.' has words"):
        KeySpaceDetection().fit(pico_llama, request_, encoder)


def generate(model: PreTrainedModel, prompts: list[tuple[int, ...]], side: Any = "left", **options: Any) -> Any:
    tokens = collate([Encoded(ids, 1, False) for ids in prompts], 0, side)
    options = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False} | options
    return model.generate(input_ids=tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT, **options)


def answers(written: Tensor, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    width = max(map(len, prompts))
    return [row[width:].tolist() for row in written]


def test_closed_rows_get_the_abstention_and_open_rows_the_models_own_answer(
    pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder,
    closed_prompts: list[tuple[int, ...]], open_prompts: list[tuple[int, ...]],
) -> None:  # fmt: skip
    method, state = fitted
    prompts = [open_prompts[0], closed_prompts[0], open_prompts[2], closed_prompts[1], closed_prompts[2], open_prompts[1]]
    plain = answers(generate(pico_llama, prompts), prompts)
    with method.attach(pico_llama, state, encoder):
        guarded = answers(generate(pico_llama, prompts), prompts)
        single = [answers(generate(pico_llama, [p]), [p])[0] for p in prompts]
    reply = [*encoder.encode_answer("?", REPLY).ids[-7:], 0, 0, 0]
    assert encoder.tokenizer.decode(reply[:6]) == REPLY
    assert reply[6] == encoder.end_id
    for i, prompt in enumerate(prompts):
        assert guarded[i] == (reply if prompt in closed_prompts else plain[i])
        assert single[i][:7] == guarded[i][:7]
    with method.attach(pico_llama, state, encoder):
        only_closed = generate(pico_llama, closed_prompts)
        only_open = generate(pico_llama, open_prompts)
    assert answers(only_closed, closed_prompts) == [reply[:7]] * 3
    assert torch.equal(only_open, generate(pico_llama, open_prompts))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("fields", [{}, {"sides": "range", "query": "mean", "layers": (0, 1), "vote": "all"}])
def test_a_batch_of_eight_with_padding_is_decided_as_eight_single_rows(
    side: Any, fields: dict[str, Any], pico_llama: PreTrainedModel, request_: Request, encoder: Encoder
) -> None:
    method = spec(**fields)
    state = method.fit(pico_llama, request_, encoder)
    asked = ["where was anna born ?", "one plus two is", "where was greta born ?", "what", "the blue bird of the pilot",
             "where was hugo born ?", "ten plus ten is", "where is the cat of boris and the dog of clara ?"]  # fmt: skip
    rows = [Encoded(ids, 1, False) for ids in encoder.encode_prompts(asked)]
    assert len({len(row.ids) for row in rows}) > 3
    with method.attach(pico_llama, state, encoder):
        single = [generate(pico_llama, [row.ids])[0, len(row.ids) :].tolist() for row in rows]
        written = generate(pico_llama, [row.ids for row in rows], side=side)
    reply = list(encoder.encode_answer("?", REPLY).ids[-7:])
    width = max(len(row.ids) for row in rows)
    batch = [row[width:].tolist() for row in written]
    assert [row[:7] == reply for row in batch] == [row[:7] == reply for row in single]
    assert {0, 2, 5} <= {i for i, row in enumerate(single) if row[:7] == reply} < set(range(8))
    if side == "left":  # a model writes nonsense behind padding on the right, guarded or not
        assert [row for row in batch if row[:7] != reply] == [row for row in single if row[:7] != reply]


def test_right_padding_decides_at_each_rows_own_last_token(
    pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder,
    closed_prompts: list[tuple[int, ...]], open_prompts: list[tuple[int, ...]],
) -> None:  # fmt: skip
    method, state = fitted
    prompts = [closed_prompts[0], open_prompts[2], open_prompts[0]]
    assert len({len(p) for p in prompts}) == 3
    with method.attach(pico_llama, state, encoder):
        written = generate(pico_llama, prompts, side="right")
    replied = [REPLY in encoder.tokenizer.decode(row) for row in written]
    assert replied == [True, False, False]


def test_a_closed_query_costs_one_pass_and_the_kept_rows_of_its_batch_no_step_of_it(
    pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder,
    closed_prompts: list[tuple[int, ...]], open_prompts: list[tuple[int, ...]],
) -> None:  # fmt: skip
    method, state = fitted
    shapes: list[tuple[int, ...]] = []
    count = pico_llama.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with method.attach(pico_llama, state, encoder):
        generate(pico_llama, closed_prompts)
        assert len(shapes) == 1
        shapes.clear()
        generate(pico_llama, open_prompts)
        assert len(shapes) == 10
        shapes.clear()
        generate(pico_llama, [closed_prompts[0], *open_prompts])
        assert [rows for rows, _ in shapes] == [4] + [3] * 10
    count.remove()


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 2}]
)
def test_beams_and_returned_sequences_are_closed_with_their_query(
    options: dict[str, Any], pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder,
    closed_prompts: list[tuple[int, ...]], open_prompts: list[tuple[int, ...]],
) -> None:  # fmt: skip
    method, state = fitted
    prompts = [closed_prompts[0], open_prompts[0], closed_prompts[1]]
    returned = options.get("num_return_sequences", 1)
    with method.attach(pico_llama, state, encoder):
        torch.manual_seed(0)
        written = answers(generate(pico_llama, prompts, **options), prompts)
    torch.manual_seed(0)
    alone = answers(generate(pico_llama, [open_prompts[0]], **options), [open_prompts[0]])
    assert len(written) == 3 * returned
    reply = encoder.encode_answer("?", REPLY).ids[-7:]
    assert all(tuple(row[:7]) == reply for row in written[:returned] + written[2 * returned :])
    assert [row[:10] for row in written[returned : 2 * returned]] == alone


def test_a_constraint_by_the_number_of_a_row_stays_with_its_row(
    pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder,
    closed_prompts: list[tuple[int, ...]], open_prompts: list[tuple[int, ...]],
) -> None:  # fmt: skip
    method, state = fitted
    prompts = [closed_prompts[0], open_prompts[0], closed_prompts[1], open_prompts[1]]
    only = {0: [10], 1: [11], 2: [12], 3: [13]}
    with method.attach(pico_llama, state, encoder):
        written = answers(generate(pico_llama, prompts, prefix_allowed_tokens_fn=lambda row, _: only[row]), prompts)
    assert (written[1][:10], written[3][:10]) == ([11] * 10, [13] * 10)
    reply = encoder.encode_answer("?", REPLY).ids[-7:]
    assert tuple(written[0][:7]) == tuple(written[2][:7]) == reply


@pytest.mark.parametrize("beams", [1, 2])
def test_what_counts_rows_counts_them_as_if_none_were_closed(
    beams: int, pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder,
    closed_prompts: list[tuple[int, ...]], open_prompts: list[tuple[int, ...]],
) -> None:  # fmt: skip
    """A processor that forces another word on each row, and a criterion that ends each row at another length."""
    method, state = fitted
    prompts = [closed_prompts[0], open_prompts[0], closed_prompts[1], open_prompts[1]]
    width, seen = max(map(len, prompts)), []

    class Forced(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            seen.append(input_ids.tolist())
            word = torch.arange(len(scores)) // beams + 10
            return torch.full_like(scores, -100.0).scatter_(1, word[:, None], 0.0)

    class Ended(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.arange(len(input_ids)) // beams + 1 <= input_ids.shape[1] - width

    rules = {"logits_processor": LogitsProcessorList([Forced()]), "stopping_criteria": StoppingCriteriaList([Ended()])}
    options = {"min_new_tokens": 1, "num_beams": beams, "length_penalty": 0.0} if beams > 1 else {"min_new_tokens": 1}
    with method.attach(pico_llama, state, encoder):
        written = answers(generate(pico_llama, prompts, **rules, **options), prompts)
    reply = encoder.encode_answer("?", REPLY).ids[-7:]
    assert tuple(written[0][:7]) == tuple(written[2][:7]) == reply
    assert [row[0] for row in (written[1], written[3])] == [11, 13]
    if beams == 1:
        assert [row.count(word) for row, word in ((written[1], 11), (written[3], 13))] == [2, 4]
    assert all(len(rows) == 4 * beams for rows in seen)
    assert [tuple(seen[-1][0][width:]), len(seen[-1])] == [reply[: len(seen[-1][0]) - width], 4 * beams]


def test_evaluation_stops_and_draws_each_open_row_as_if_it_were_alone(
    pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder,
    closed_prompts: list[tuple[int, ...]], open_prompts: list[tuple[int, ...]],
) -> None:  # fmt: skip
    """The open rows of a batch go on without the closed ones, so a row is not where it was."""
    method, state = fitted
    write = partial(evaluated, pico_llama, pad_id=0, end_ids=[2], max_new_tokens=8)
    whole = write(open_prompts)
    stops = {ids[:length] for ids, length in zip(whole, (2, 5, 3), strict=True)}
    reply = encoder.encode_answer("?", REPLY).ids[-7:-1]
    prompts = [closed_prompts[0], open_prompts[0], closed_prompts[1], open_prompts[1], open_prompts[2]]
    with method.attach(pico_llama, state, encoder):
        written = write(prompts, stopped=lambda ids: ids in stops)
    assert written == [reply, whole[0][:2], reply, whole[1][:5], whole[2][:3]]
    draw = partial(sample, pico_llama, nucleus=Nucleus(), draws=2, pad_id=0, end_ids=[2], max_new_tokens=8)
    drawn = draw(open_prompts)
    with method.attach(pico_llama, state, encoder):
        assert draw(prompts) == [(reply, reply), drawn[0], (reply, reply), drawn[1], drawn[2]]


def test_the_form_of_the_answer_is_what_generate_would_give(
    pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder, closed_prompts: list[tuple[int, ...]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    method, state = fitted
    ids = torch.tensor([closed_prompts[0]])
    with method.attach(pico_llama, state, encoder):
        assert pico_llama.generate(ids, max_new_tokens=3).shape[1] == ids.shape[1] + 3
        assert pico_llama.generate(ids, max_length=ids.shape[1] + 4).shape[1] == ids.shape[1] + 4
        assert pico_llama.generate(inputs=ids, return_dict_in_generate=True).sequences.shape[1] == ids.shape[1] + 7
        pico_llama.generate(ids, streamer=TextStreamer(encoder.tokenizer, skip_prompt=True, skip_special_tokens=True))
        assert capsys.readouterr().out == REPLY + "\n"


def test_what_it_cannot_judge_it_refuses(
    pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder, closed_prompts: list[tuple[int, ...]]
) -> None:
    method, state = fitted
    ids = torch.tensor([closed_prompts[0]])
    cache = pico_llama(ids[:, :3], use_cache=True).past_key_values
    embeddings = pico_llama.get_input_embeddings()(ids)
    with method.attach(pico_llama, state, encoder):
        with pytest.raises(ExpungeError, match="give generate its input_ids"):
            pico_llama.generate(inputs_embeds=embeddings)
        with pytest.raises(ExpungeError, match="without cache"):
            pico_llama.generate(ids, past_key_values=cache)
        with pytest.raises(ExpungeError, match="without cache"):
            pico_llama.generate(ids, prefill_chunk_size=2)
        with pytest.raises(ExpungeError, match="continuous batching"):
            pico_llama.generate_batch(inputs=ids.tolist())
        with pytest.raises(ExpungeError, match="return_dict=True"):
            pico_llama(ids, return_dict=False)


@pytest.mark.parametrize("side", ["left", "right"])
def test_scoring_agrees_with_generating(
    side: Any, pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder, request_: Request
) -> None:
    """From the prompt's end a closed row spells the abstention, with probability 1; open rows are untouched."""
    method, state = fitted
    asked = [*request_.forget[:3], *request_.retain[:3]]
    truth, reply = encoder.encode_many(asked), encoder.encode_answers([(e.prompt, REPLY) for e in asked])
    plain = labelled_logits(pico_llama, collate(truth, 0, side))
    with method.attach(pico_llama, state, encoder):
        guarded = labelled_logits(pico_llama, collate(truth, 0, side))
        of_reply = labelled_logits(pico_llama, collate(reply, 0, side))
        hidden = labelled_hidden(pico_llama, collate(truth, 0, side))
    logp_N = of_reply.logits_NV.log_softmax(-1).gather(1, of_reply.labels_N[:, None])[:, 0]
    assert logp_N[of_reply.row_N < 3].min() > -1e-6
    true_N = guarded.logits_NV.log_softmax(-1).gather(1, guarded.labels_N[:, None])[:, 0]
    first_N = torch.tensor([int((guarded.row_N == b).nonzero()[0]) for b in range(6)])
    assert true_N[first_N[:3]].max() < -40
    assert torch.isfinite(true_N).all()
    assert torch.equal(guarded.logits_NV[guarded.row_N >= 3], plain.logits_NV[plain.row_N >= 3])
    assert hidden.hidden_ND.shape[0] == len(guarded.labels_N)


def test_the_engine_scores_closed_answers_as_forgotten(
    pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder, request_: Request
) -> None:
    method, state = fitted
    asked = [*request_.forget, *request_.retain]
    sequences = encoder.encode_many(asked)
    plain = Engine(pico_llama, 0).score(sequences)
    with method.attach(pico_llama, state, encoder):
        guarded = Engine(pico_llama, 0, max_tokens=100).score(sequences)
    for i, (before, after) in enumerate(zip(plain, guarded, strict=True)):
        if i < len(request_.forget):
            assert after.logp.mean() < -30
            assert not after.hit.all()
        else:
            assert after.logp == pytest.approx(before.logp, abs=1e-4)


def test_a_plain_pass_judges_every_position_as_a_prompts_end(
    pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder,
    closed_prompts: list[tuple[int, ...]], open_prompts: list[tuple[int, ...]],
) -> None:  # fmt: skip
    method, state = fitted
    rows = [Encoded((*closed_prompts[0], 50, 51, 52), 1, False), Encoded((*open_prompts[0], 50), 1, False)]
    tokens, start = collate(rows, 0, "left"), len(closed_prompts[0]) - 1
    inputs = {"input_ids": tokens.input_ids_BT, "attention_mask": tokens.attention_mask_BT}
    plain = pico_llama(**inputs).logits
    with method.attach(pico_llama, state, encoder):
        output = pico_llama(**inputs, labels=tokens.input_ids_BT)
        last = pico_llama(**inputs, logits_to_keep=2).logits
    reply = encoder.encode_answer("?", REPLY).ids[-7:]
    assert output.logits[0, start:].argmax(-1).tolist() == list(reply[: len(rows[0].ids) - start])
    assert torch.equal(output.logits[0, :start], plain[0, :start])
    assert torch.equal(output.logits[1], plain[1])
    assert torch.equal(last, output.logits[:, -2:])
    expected = pico_llama.loss_function(output.logits, tokens.input_ids_BT, vocab_size=output.logits.shape[-1])
    torch.testing.assert_close(output.loss, expected)


def test_a_decoding_loop_of_ones_own_stays_closed(
    pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder, closed_prompts: list[tuple[int, ...]]
) -> None:
    method, state = fitted
    with torch.no_grad(), method.attach(pico_llama, state, encoder):
        output, said = pico_llama(torch.tensor([closed_prompts[0]]), use_cache=True), []
        for _ in range(7):
            said.append(int(output.logits[0, -1].argmax()))
            output = pico_llama(torch.tensor([said[-1:]]), past_key_values=output.past_key_values, use_cache=True)
        output.past_key_values.batch_repeat_interleave(2)
        with pytest.raises(ExpungeError, match="rows of a key-value cache"):
            pico_llama(torch.tensor([[5], [5]]), past_key_values=output.past_key_values)
    assert encoder.tokenizer.decode(said[:6]) == REPLY


def box_at(model: PreTrainedModel, ids: Tensor, position: int, layer: int = 1, radius: float = 0.01) -> State:
    """A tiny box around the key of one token."""
    with torch.no_grad(), capture(model, {"key": blocks_of(model).key(layer)}) as seen:
        model(ids)
    key_F = seen["key"][0, position]
    ones = torch.ones(1, dtype=torch.float64)
    return {
        "layer": torch.tensor([layer]),
        "centre": key_F[None],
        "unit": torch.ones_like(key_F)[None],
        "k": ones,
        "radius": radius * ones,
        "count": torch.tensor(9),
    }


def test_all_steps_judges_what_is_generated_and_prompt_does_not(pico_llama: PreTrainedModel, encoder: Encoder) -> None:
    ids = torch.tensor([[1, 9, 30, 31, 12], [1, 22, 8, 60, 40]])
    options = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    plain = pico_llama.generate(ids, **options)
    state = box_at(pico_llama, plain[:1], 9)  # the fifth generated token of the first row
    for check, closes in (("prompt", False), ("all_steps", True)):
        method = spec(check=check)
        with method.attach(pico_llama, state, encoder):
            written = pico_llama.generate(ids, **options)
            alone = pico_llama.generate(ids[:1], **options)
            beams = pico_llama.generate(ids, num_beams=2, **options)
            scored = labelled_logits(pico_llama, collate([Encoded(tuple(plain[0].tolist()), 5, False)], 0)).logits_NV
        assert (REPLY in encoder.tokenizer.decode(written[0])) == closes
        assert (REPLY in encoder.tokenizer.decode(alone[0])) == closes
        assert torch.equal(written[1], plain[1])
        assert beams.shape[0] == 2
        assert (int(scored[0].argmax()) == encoder.encode_answer("?", REPLY).ids[-7]) == closes


def test_steering_puts_the_retain_mean_in_the_place_of_the_key(
    pico_llama: PreTrainedModel,
    request_: Request,
    encoder: Encoder,
    closed_prompts: list[tuple[int, ...]],
    open_prompts: list[tuple[int, ...]],
) -> None:
    method = spec(action="steer")
    state = method.fit(pico_llama, request_, encoder)
    where = {"key": blocks_of(pico_llama).key(1)}
    rows = [Encoded((*ids, 40), len(ids), False) for ids in (closed_prompts[0], open_prompts[0])]
    with torch.no_grad(), method.attach(pico_llama, state, encoder), capture(pico_llama, where) as seen:
        labelled_logits(pico_llama, collate(rows, 0, "left"))
    torch.testing.assert_close(seen["key"][0, -2], state["steer"][0])
    assert (seen["key"][1, -2] - state["steer"][0]).abs().max() > 1e-3
    plain = generate(pico_llama, [closed_prompts[0], open_prompts[0]])
    with method.attach(pico_llama, state, encoder):
        steered = generate(pico_llama, [closed_prompts[0], open_prompts[0]])
    assert not torch.equal(steered[0], plain[0])
    assert torch.equal(steered[1], plain[1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_query_can_be_the_mean_key_of_its_tokens(
    side: Any, pico_llama: PreTrainedModel, request_: Request, encoder: Encoder,
    closed_prompts: list[tuple[int, ...]], open_prompts: list[tuple[int, ...]],
) -> None:  # fmt: skip
    method = spec(query="mean")
    state = method.fit(pico_llama, request_, encoder)
    prompts = encoder.encode_prompts([str(e.prompt) for e in request_.forget])
    keys = []
    for ids in prompts:
        with torch.no_grad(), capture(pico_llama, {"key": blocks_of(pico_llama).key(1)}) as seen:
            pico_llama(torch.tensor([ids]))
        keys.append(seen["key"][0].mean(0))
    torch.testing.assert_close(state["centre"][0], torch.stack(keys).mean(0))
    assert float(state["k"][0]) == pytest.approx(KeyBox.of_vectors(torch.stack(keys)).k, rel=1e-4)
    mixed = [closed_prompts[0], open_prompts[2], closed_prompts[1], open_prompts[0]]
    truth = encoder.encode_many([request_.forget[0], request_.retain[0], request_.forget[1]])
    with method.attach(pico_llama, state, encoder):
        written = generate(pico_llama, mixed, side=side)
        scored = labelled_logits(pico_llama, collate(truth, 0, side))
        whole = pico_llama(torch.tensor([[*closed_prompts[0], 50, 51]])).logits
    assert [REPLY in encoder.tokenizer.decode(row) for row in written] == [True, False, True, False]
    first_N = torch.tensor([int((scored.row_N == b).nonzero()[0]) for b in range(3)])
    reply = encoder.encode_answer("?", REPLY).ids[-7:]
    assert (scored.logits_NV[first_N].argmax(-1) == reply[0]).tolist() == [True, False, True]
    assert whole[0, len(closed_prompts[0]) - 1].argmax() == reply[0]
    with pytest.raises(ValidationError, match="whole prompts only"):
        spec(query="mean", check="all_steps")


def test_several_layers_vote(pico_llama: PreTrainedModel, encoder: Encoder) -> None:
    ids, other = torch.tensor([[1, 9, 30, 31, 12]]), torch.tensor([[1, 9, 30, 31, 60]])
    both, mixed = (
        {
            name: torch.cat([low[name], high[name]]) if name != "count" else low[name]
            for name in low
        }
        for low, high in (
            (box_at(pico_llama, ids, 4, 0), box_at(pico_llama, ids, 4, 1)),
            (box_at(pico_llama, ids, 4, 0), box_at(pico_llama, other, 4, 1)),
        )
    )  # fmt: skip
    for vote, state, closed in (("all", both, True), ("any", both, True), ("all", mixed, False), ("any", mixed, True)):
        method = spec(layers=(0, 1), vote=vote)
        with method.attach(pico_llama, state, encoder):
            written = pico_llama.generate(ids, max_new_tokens=8, do_sample=False)
        assert (REPLY in encoder.tokenizer.decode(written[0])) == closed, (vote, closed)
    with pytest.raises(ValidationError, match="vote any"):
        spec(layers=(0, 1), vote="all", action="steer")
    with (
        pytest.raises(ExpungeError, match="blocks 0 to 1"),
        spec().attach(pico_llama, {**both, "layer": torch.tensor([0, 7])}, encoder),
    ):
        pass


def test_threads_that_share_a_guarded_model_do_not_share_decisions(
    pico_llama: PreTrainedModel, fitted: tuple[KeySpaceDetection, State], encoder: Encoder,
    closed_prompts: list[tuple[int, ...]], open_prompts: list[tuple[int, ...]],
) -> None:  # fmt: skip
    method, state = fitted
    replied: dict[str, list[bool]] = {"closed": [], "open": []}

    def ask(kind: str, ids: tuple[int, ...]) -> None:
        for _ in range(5):
            written = pico_llama.generate(torch.tensor([ids]), max_new_tokens=7, do_sample=False)
            replied[kind].append(REPLY in encoder.tokenizer.decode(written[0]))

    with method.attach(pico_llama, state, encoder):
        threads = [threading.Thread(target=ask, args=a) for a in (("closed", closed_prompts[0]), ("open", open_prompts[0]))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert replied == {"closed": [True] * 5, "open": [False] * 5}


@pytest.mark.parametrize("action", ["abstain", "steer"])
def test_nothing_is_left_after_detaching(
    action: Any, pico_llama: PreTrainedModel, request_: Request, encoder: Encoder, leaves_nothing: Any
) -> None:
    method = spec(action=action)
    leaves_nothing(pico_llama, partial(method.attach, pico_llama, method.fit(pico_llama, request_, encoder), encoder))
