"""Neuron Adjust: what is chosen, by what law values change, and that a row's values depend on nothing but the row."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from expunge.data.encode import Encoded, Encoder, collate
from expunge.data.example import Request
from expunge.guarding.random_bits import mix, uniform
from expunge.methods import NeuronAdjust
from expunge.methods.base import State
from expunge.methods.guarding.neuron_adjust import Neurons, chosen, scores
from expunge.models.activations import Moments, probe
from expunge.models.blocks import blocks_of
from expunge.models.hooks import capture
from expunge.models.logprobs import labelled_logits
from expunge.models.spans import Span


def gaussians(n: int, seed: int = 0) -> dict[str, Tensor]:
    """State of n neurons of layer 0 with Gaussians of every kind: apart, overlapping, narrow, wide, negative means."""
    g = torch.Generator().manual_seed(seed)
    mean = 2 * torch.randn(2, n, generator=g, dtype=torch.float64)
    std = 0.2 + torch.rand(2, n, generator=g, dtype=torch.float64)
    return {
        "layer": torch.zeros(n, dtype=torch.int64),
        "neuron": torch.arange(n),
        "forget_mean": mean[0],
        "forget_std": std[0],
        "retain_mean": mean[1],
        "retain_std": std[1],
        "forget_tokens": torch.tensor(100),
        "retain_tokens": torch.tensor(100),
    }


def of(state: State, **fields: Any) -> Neurons:
    return Neurons.of(NeuronAdjust(**fields), state, 0)


def image(neurons: Neurons, x: Tensor) -> Tensor:
    """Where values [..., K] of the forget Gaussian go, in float64."""
    return neurons.lines(x.reshape(1, -1, x.shape[-1]))[2].view(x.shape)


def log_ratio(neurons: Neurons, x: Tensor) -> Tensor:
    """log p_f(x) - log p_r(x) of values [..., K], as it is compared."""
    apart, sum_, _ = neurons.lines(x.reshape(1, -1, x.shape[-1]))
    return ((apart * sum_ - neurons.least_K) / 2).view(x.shape)


def moments_of(*rows: list[float]) -> Moments:
    """One layer, one neuron per row of values."""
    found = Moments.empty(1, len(rows))
    found.update(0, torch.tensor(rows, dtype=torch.float64).T)
    return found


@pytest.mark.parametrize(("percent", "count"), [(3.0, 13_763), (0.5, 2_294), (1.5, 6_882), (100.0, 458_752)])
def test_the_published_thresholds_choose_the_published_numbers_of_neurons(percent: float, count: int) -> None:
    scores_LF = torch.randn(32, 14_336, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer_K, neuron_K = chosen(scores_LF, percent, "global")
    assert len(layer_K) == count
    others = scores_LF.clone()
    others[layer_K, neuron_K] = -math.inf
    assert scores_LF[layer_K, neuron_K].min() > others.max()


def test_ties_at_the_threshold_are_all_in_and_layers_can_have_their_own() -> None:
    scores_LF = torch.tensor([[5.0, 1, 1, 1], [0, 0, 0, 1]])
    assert [t.tolist() for t in chosen(scores_LF, 25, "global")] == [[0, 0, 0, 0, 1], [0, 1, 2, 3, 3]]
    assert [t.tolist() for t in chosen(scores_LF, 25, "layer")] == [[0, 1], [0, 3]]


def test_scores_are_the_stated_formulas() -> None:
    forget, retain = moments_of([0.0, 2.0], [1.0, 3.0]), moments_of([0.0, 4.0], [0.0, 1.0])
    assert scores(forget, retain, "mean_difference").tolist() == [[-1.0, 1.5]]
    assert scores(forget, retain, "absolute_mean_difference").tolist() == [[1.0, 1.5]]
    assert scores(forget, retain, "cohen_d")[0].tolist() == pytest.approx([-1 / math.sqrt(2.5), 1.5 / math.sqrt(0.625)])

    def kl(m: float, v: float, n: float, w: float) -> float:
        return 0.5 * (math.log(w / v) + (v + (m - n) ** 2) / w - 1)

    both = [kl(1, 1, 2, 4) + kl(2, 4, 1, 1), kl(2, 1, 0.5, 0.25) + kl(0.5, 0.25, 2, 1)]
    assert scores(forget, retain, "jeffreys")[0].tolist() == pytest.approx(both)


@pytest.mark.parametrize("mirror", [True, False])
def test_forget_draws_mapped_by_the_always_change_variant_have_the_retain_gaussian(mirror: bool) -> None:
    state = gaussians(50)
    z = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = (z - z.mean()) / z.std()  # exact moments, so that the image's are exact too
    x = state["forget_mean"] + state["forget_std"] * z
    after = image(of(state, mirror=mirror), x)
    torch.testing.assert_close(after.mean(0), state["retain_mean"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.std(0), state["retain_std"], rtol=1e-9, atol=1e-9)
    sign = -1 if mirror else 1
    torch.testing.assert_close((after - state["retain_mean"]) / state["retain_std"], sign * z.expand_as(after))


def test_the_log_ratio_is_that_of_the_two_normal_densities_also_where_both_are_zero() -> None:
    state = gaussians(200)
    normal = [torch.distributions.Normal(state[f"{s}_mean"], state[f"{s}_std"]) for s in ("forget", "retain")]
    for x in (state["forget_mean"], state["retain_mean"], torch.full((200,), 0.3), torch.full((200,), 500.0)):
        expected = normal[0].log_prob(x.double()) - normal[1].log_prob(x.double())
        torch.testing.assert_close(log_ratio(of(state), x.double()), expected, rtol=1e-9, atol=1e-9)


def guarded_values(model: PreTrainedModel, method: NeuronAdjust, state: State, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Gate pre-activations of layer 0 without and with the guard, [B, T, F]."""
    where = {"here": blocks_of(model).pre_activation(0)}
    with torch.no_grad(), capture(model, where) as before:
        model(input_ids=ids)
    with torch.no_grad(), method.attach(model, state, None), capture(model, where) as after:  # type: ignore[arg-type]
        model(input_ids=ids)
    return before["here"], after["here"]


def test_values_change_with_the_sigmoid_of_the_log_likelihood_ratio_and_never_below_one_half(pico_llama: PreTrainedModel) -> None:
    """One neuron's values at 8000 different prefixes, in bins of their probability of change."""
    state, method = gaussians(64), NeuronAdjust(draw_seed=5)
    state["forget_mean"], state["retain_mean"] = state["forget_mean"] / 2, state["retain_mean"] / 2
    ids = torch.randint(4, 80, (80, 100), generator=torch.Generator().manual_seed(0))
    before, after = guarded_values(pico_llama, method, state, ids)
    llr = log_ratio(of(state), before.double())
    changed = before != after
    assert not changed[llr < 0].any()
    torch.testing.assert_close(after[changed], image(of(state), before.double()).float()[changed])
    probability = llr.sigmoid()
    for low in (0.5, 0.6, 0.7, 0.8, 0.9):
        bin_ = (llr >= 0) & (probability >= low) & (probability < low + 0.1)
        expected, n = float(probability[bin_].mean()), int(bin_.sum())
        assert n > 2000
        assert float(changed[bin_].float().mean()) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / n))


def test_draws_are_uniform_and_independent_over_neurons_positions_and_rows() -> None:
    prefix_BT, key_K = mix(torch.arange(3000)), mix(torch.arange(40) + 10**6)
    draw = uniform(prefix_BT[:, None] ^ key_K)
    assert draw.min() >= 0
    assert draw.max() < 1
    assert float(draw.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(draw.var()) == pytest.approx(1 / 12, abs=0.002)
    counts = torch.histc(draw, 64, 0, 1)
    assert float(((counts - counts.mean()).square() / counts.mean()).sum()) < 110  # chi square, 63 degrees: 99.98 %
    correlation = torch.corrcoef(draw.T) - torch.eye(40)
    assert correlation.abs().max() < 5 / math.sqrt(3000)
    assert torch.corrcoef(draw[:200]).triu(1).abs().max() < 0.85


def test_without_draws_every_eligible_value_changes(pico_llama: PreTrainedModel) -> None:
    state = gaussians(64)
    before, after = guarded_values(pico_llama, NeuronAdjust(stochastic=False), state, torch.tensor([[1, 9, 30, 31]]))
    eligible = log_ratio(of(state), before.double()) >= 0
    assert torch.equal(before != after, eligible)
    assert eligible.any()


def test_the_seed_chooses_the_draws_and_nothing_else_does(pico_llama: PreTrainedModel) -> None:
    state, ids = gaussians(64), torch.tensor([[1, 9, 30, 31, 50, 51]])
    first, again, other = (guarded_values(pico_llama, NeuronAdjust(draw_seed=s), state, ids)[1] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_released_hook_takes_the_mean_for_the_deviation_and_one_draw_a_layer(pico_llama: PreTrainedModel) -> None:
    state, method = gaussians(64), NeuronAdjust(compat="released")
    ids = torch.randint(4, 80, (60, 5), generator=torch.Generator().manual_seed(0))
    before, after = guarded_values(pico_llama, method, state, ids)
    x, never = before.double(), state["forget_mean"] <= 0
    mean, deviation, variance = state["forget_mean"], state["forget_mean"], state["retain_std"].square()
    p_f = torch.exp(-0.5 * ((x - mean) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
    p_r = torch.exp(-0.5 * ((x - state["retain_mean"]) / variance) ** 2) / (variance * math.sqrt(2 * math.pi))
    changed, share = before != after, p_r / (p_r + p_f)
    assert not changed[..., never].any()
    assert never.any()
    assert not changed[p_r > p_f].any()
    image = state["retain_mean"] - variance / deviation * (x - mean)
    torch.testing.assert_close(after[changed], image.float()[changed], rtol=1e-5, atol=1e-5)
    for row in range(len(ids)):  # a single u: what changed lies below it, what stayed above
        mine = (p_r[row] <= p_f[row]) & ~never
        lowest = share[row][mine & changed[row]].max() if (mine & changed[row]).any() else 0.0
        highest = share[row][mine & ~changed[row]].min() if (mine & ~changed[row]).any() else 1.0
        assert lowest <= highest + 1e-6


def guard(model: PreTrainedModel, **fields: Any) -> tuple[NeuronAdjust, State]:
    """A guard whose two texts are random, strong enough to change what the model says."""
    g = torch.Generator().manual_seed(7)
    texts = [Span(tuple(torch.randint(low, low + 38, (12,), generator=g).tolist()), 0, 12) for low in (4, 42) for _ in range(6)]
    forget, retain = (probe(model, part, 0, roles=("pre_activation",)) for part in (texts[:6], texts[6:]))
    method = NeuronAdjust(percent=30, score="cohen_d", **fields)
    return method, method.select(*(part.moments["pre_activation"] for part in (forget, retain)))


@pytest.mark.parametrize("compat", ["none", "released"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "phi3", "gpt2", "opt", "bloom"])
def test_a_batch_of_eight_with_padding_equals_eight_single_rows(
    model_type: str, side: Any, compat: Any, model_of: Callable[..., PreTrainedModel], rows: list[Encoded]
) -> None:
    model = model_of(model_type)
    method, state = guard(model, compat=compat)
    plain = labelled_logits(model, collate(rows, 0, side)).logits_NV
    with torch.no_grad(), method.attach(model, state, None):  # type: ignore[arg-type]
        batch = labelled_logits(model, collate(rows, 0, side)).logits_NV
        single = torch.cat([labelled_logits(model, collate([row], 0)).logits_NV for row in rows])
    torch.testing.assert_close(batch, single, rtol=1e-3, atol=1e-3)
    assert (batch - plain).abs().max() > 0.05


def test_decoding_with_a_cache_computes_what_one_pass_over_the_whole_text_does(pico_llama: PreTrainedModel) -> None:
    method, state = guard(pico_llama)
    prompts = collate([Encoded((1, 9, 30, 31, 12), 1, False), Encoded((1, 22), 1, False)], 0, "left")
    with torch.no_grad(), method.attach(pico_llama, state, None):  # type: ignore[arg-type]
        written = pico_llama.generate(
            input_ids=prompts.input_ids_BT, attention_mask=prompts.attention_mask_BT, max_new_tokens=12, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        for row, length in enumerate((5, 2)):
            ids = written.sequences[row, 5 - length :][None]
            whole = pico_llama(input_ids=ids).logits[0, length - 1 : -1]
            steps = torch.stack([step[row] for step in written.logits])
            torch.testing.assert_close(steps, whole, rtol=1e-3, atol=1e-3)
    plain = pico_llama.generate(input_ids=prompts.input_ids_BT, attention_mask=prompts.attention_mask_BT, max_new_tokens=12)
    assert not torch.equal(plain, written.sequences)


def generate(model: PreTrainedModel, prompts: list[Encoded], **options: Any) -> list[list[int]]:
    tokens = collate(prompts, 0, "left")
    written = model.generate(
        input_ids=tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT, max_new_tokens=8, min_new_tokens=8,
        do_sample=False, **options,
    )  # fmt: skip
    return [row[-8:].tolist() for row in written]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_and_returned_sequences_of_a_batch_are_those_of_single_rows(
    options: dict[str, int], pico_llama: PreTrainedModel, rows: list[Encoded]
) -> None:
    method, state = guard(pico_llama)
    prompts = [Encoded(row.ids[: row.answer_start], 1, False) for row in rows]
    with method.attach(pico_llama, state, None):  # type: ignore[arg-type]
        single = [ids for row in prompts for ids in generate(pico_llama, [row], **options)]
        assert generate(pico_llama, prompts, **options) == single
    assert generate(pico_llama, prompts, **options) != single


def test_beams_score_their_sequences_as_one_pass_does(pico_llama: PreTrainedModel) -> None:
    """Beams are exchanged between steps; each keeps the draws of its own tokens."""
    method, state = guard(pico_llama)
    with torch.no_grad(), method.attach(pico_llama, state, None):  # type: ignore[arg-type]
        found = pico_llama.generate(
            input_ids=torch.tensor([[1, 9, 30, 31, 12]]), max_new_tokens=8, min_new_tokens=8, num_beams=4, num_return_sequences=4,
            length_penalty=0.0, return_dict_in_generate=True, output_scores=True, do_sample=False,
        )  # fmt: skip
        logp = pico_llama(input_ids=found.sequences).logits.log_softmax(-1)[:, 4:-1]
    logp[..., 2] = -torch.inf  # min_new_tokens forbids the end token
    taken = logp.gather(-1, found.sequences[:, 5:, None])[..., 0].sum(dim=1)
    torch.testing.assert_close(taken, found.sequences_scores, rtol=1e-3, atol=1e-3)


def test_positions_can_be_the_prompts_or_the_answers(pico_llama: PreTrainedModel, rows: list[Encoded]) -> None:
    where, tokens = {"here": blocks_of(pico_llama).pre_activation(0)}, collate(rows, 0)
    changed = {}
    for positions in ("all", "prompt", "generated"):
        method, state = guard(pico_llama, positions=positions)
        with torch.no_grad(), capture(pico_llama, where) as before:
            labelled_logits(pico_llama, tokens)
        with torch.no_grad(), method.attach(pico_llama, state, None), capture(pico_llama, where) as after:  # type: ignore[arg-type]
            labelled_logits(pico_llama, tokens)
        changed[positions] = (before["here"] != after["here"]).any(dim=-1)
    answer = tokens.labels_BT != -100  # the tokens that a model reads back while it writes, and the end token
    assert not (changed["generated"] & ~answer & (tokens.attention_mask_BT == 1)).any()
    assert not (changed["prompt"] & answer).any()
    assert (changed["generated"] & answer).any()
    assert torch.equal((changed["prompt"] | changed["generated"])[answer], changed["all"][answer])


def test_in_generation_the_prefill_is_the_prompt(pico_llama: PreTrainedModel) -> None:
    ids = torch.tensor([[1, 9, 30, 31, 12]])
    first: dict[str, Tensor] = {}
    for positions in ("prompt", "generated"):
        method, state = guard(pico_llama, positions=positions)
        with method.attach(pico_llama, state, None):  # type: ignore[arg-type]
            out = pico_llama.generate(ids, max_new_tokens=3, return_dict_in_generate=True, output_logits=True, do_sample=False)
        first[positions] = out.logits[0]
    plain = pico_llama(input_ids=ids).logits[:, -1]
    torch.testing.assert_close(first["generated"], plain)
    assert (first["prompt"] - plain).abs().max() > 0.01


def test_nothing_is_left_after_detaching(pico_llama: PreTrainedModel, leaves_nothing: Any) -> None:
    method, state = guard(pico_llama)
    leaves_nothing(pico_llama, partial(method.attach, pico_llama, state, None))


def test_fitting_compares_the_two_sets_of_the_request(pico_llama: PreTrainedModel, request_: Request, encoder: Encoder) -> None:
    method = NeuronAdjust(percent=10, tokens="generated")
    state = method.fit(pico_llama, request_, encoder)
    assert len(state["layer"]) == 13  # ceil of 10 % of 128
    assert torch.all(state["forget_mean"] >= state["retain_mean"])
    assert "Adjusts 13 neurons in" in method.summary(state)


def test_a_model_in_bfloat16_is_adjusted_in_its_dtype(pico_llama: PreTrainedModel) -> None:
    method, state = guard(pico_llama)
    half = pico_llama.to(torch.bfloat16)
    with torch.no_grad(), method.attach(half, state, None):  # type: ignore[arg-type]
        logits = half(input_ids=torch.tensor([[1, 9, 30]])).logits
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()
