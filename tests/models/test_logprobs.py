"""The one place that shifts and masks."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import CohereConfig, CohereForCausalLM, PreTrainedModel

from expunge.data.encode import Tokens
from expunge.errors import ExpungeError
from expunge.models import vocabulary
from expunge.models.load import causal_model
from expunge.models.logprobs import (
    FrozenHead,
    Labelled,
    kl_divergence,
    labelled_hidden,
    labelled_logits,
    output_head,
    position_ids,
    sequence_mean,
    sequence_sum,
    token_logprobs,
)

VARIANTS = {
    "falcon_alibi": ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "falcon_40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "opt_350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "gpt_neox_serial": ("gpt_neox", {"use_parallel_residual": False}),
    "bloom_post_norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, model_of: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    model_type, changes = VARIANTS[request.param]
    return model_of(model_type, **changes)


def naive_logits(model: nn.Module, single_rows: list[Tokens]) -> Tensor:
    """Row by row without padding or position ids, all logits, then the definition: the label at t is predicted from t - 1."""
    rows = []
    for tokens in single_rows:
        logits_TV = model(input_ids=tokens.input_ids_BT, use_cache=False).logits[0]
        rows.append(logits_TV[:-1][tokens.labels_BT[0, 1:] != -100])
    return torch.cat(rows)


PADDINGS = [("right", 0), ("left", 0), ("right", 24), ("left", 24)]


def check_padding(model: PreTrainedModel, batch: Callable[..., Tokens], single_rows: list[Tokens]) -> None:
    with torch.no_grad():
        expected_NV = naive_logits(model, single_rows)
        for side, extra in PADDINGS:
            labelled = labelled_logits(model, batch(side, extra))
            torch.testing.assert_close(labelled.logits_NV, expected_NV, atol=1e-5, rtol=1e-5)


def test_padding_on_either_side_and_by_24_changes_no_logit(
    any_model: PreTrainedModel, batch: Callable[..., Tokens], single_rows: list[Tokens]
) -> None:
    check_padding(any_model, batch, single_rows)


def test_padding_changes_no_logit_in_variants_of_an_architecture(
    variant: PreTrainedModel, batch: Callable[..., Tokens], single_rows: list[Tokens]
) -> None:
    check_padding(variant, batch, single_rows)


def test_gradients_are_finite_and_the_same_under_either_padding(any_model: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    gradients = []
    for side, extra in (("right", 0), ("left", 24)):
        any_model.zero_grad()
        token_logprobs(labelled_logits(any_model, batch(side, extra))).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in any_model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert output_head(any_model).weight.grad is not None
    for name, gradient in gradients[0].items():
        assert gradients[1][name].isfinite().all()
        torch.testing.assert_close(
            gradients[1][name], gradient, atol=2e-4, rtol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_labels_and_rows_come_in_row_major_order(pico_llama: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    labelled = labelled_logits(pico_llama, batch("left", 3))
    assert labelled.labels_N.tolist() == [40, 41, 17, 52, 2, 8, 60, 2, 25, 26, 64, 2]
    assert labelled.row_N.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert labelled.rows == 3


def test_the_head_sees_only_labelled_rows(pico_llama: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    seen = []
    with_hook = pico_llama.lm_head.register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape)))
    labelled_logits(pico_llama, batch())
    labelled_hidden(pico_llama, batch())
    with_hook.remove()
    assert seen == [(12, 32), (0, 32)]


def test_no_hook_is_left_even_when_the_model_fails(pico_llama: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    labelled_logits(pico_llama, batch())
    broken = batch()
    broken.input_ids_BT = broken.input_ids_BT + 10_000
    with pytest.raises(IndexError):
        labelled_logits(pico_llama, broken)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in pico_llama.modules())


def test_a_label_with_nothing_before_it_is_refused(pico_llama: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    at_the_edge = batch()
    at_the_edge.labels_BT[0, 0] = 1
    after_padding = batch("left")
    after_padding.labels_BT[1, 5] = 1
    for tokens in (at_the_edge, after_padding):
        with pytest.raises(ValueError, match="nothing stands before it"):
            labelled_logits(pico_llama, tokens)


def test_a_batch_without_labels_gives_no_rows(pico_llama: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    tokens = batch()
    tokens.labels_BT.fill_(-100)
    labelled = labelled_logits(pico_llama, tokens)
    assert labelled.logits_NV.shape == (0, pico_llama.config.vocab_size)
    assert sequence_sum(token_logprobs(labelled), labelled.row_N, labelled.rows).tolist() == [0.0, 0.0, 0.0]


def test_positions_start_at_the_first_token() -> None:
    mask_BT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert position_ids(mask_BT).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]


def test_an_adapter_changes_nothing_until_it_is_trained(pico_llama: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    from peft import LoraConfig, get_peft_model

    expected_NV = labelled_logits(pico_llama, batch()).logits_NV
    adapted = get_peft_model(pico_llama, LoraConfig(target_modules=["q_proj", "lm_head"], r=2))
    torch.testing.assert_close(labelled_logits(adapted, batch("left")).logits_NV, expected_NV)


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_replicas_and_shards_give_the_logits_and_gradients_of_the_plain_model(
    model_of: Callable[..., PreTrainedModel], batch: Callable[..., Tokens]
) -> None:
    plain, replica, sharded = model_of("gemma2"), DistributedDataParallel(model_of("gemma2")), model_of("gemma2")
    for block in sharded.model.layers:
        fully_shard(block)
    fully_shard(sharded)
    results = []
    for model in (plain, replica, sharded):
        labelled = labelled_logits(model, batch("left"))
        hidden_ND = labelled_hidden(model, batch()).hidden_ND.detach()
        head = FrozenHead.of(model)
        token_logprobs(labelled).sum().backward()
        gradient = causal_model(model).model.layers[0].mlp.down_proj.weight.grad
        results.append(
            (labelled.logits_NV, head(hidden_ND), gradient.full_tensor() if isinstance(gradient, DTensor) else gradient)
        )
    assert isinstance(sharded.lm_head.weight, DTensor)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_token_logprobs_are_those_of_log_softmax_with_their_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits_NV, labels_N, weight_N = 20 * torch.randn(13, 17), torch.randint(0, 17, (13,)), torch.randn(13)
    for chunk in (1, 40, 10_000):
        monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", chunk)
        ours, theirs = logits_NV.clone().requires_grad_(), logits_NV.double().requires_grad_()
        logp_N = token_logprobs(Labelled(ours, labels_N, torch.zeros(13, dtype=torch.int64), 1))
        expected_N = theirs.log_softmax(1).gather(1, labels_N[:, None])[:, 0]
        torch.testing.assert_close(logp_N.double(), expected_N, atol=1e-5, rtol=1e-6)
        (logp_N * weight_N).sum().backward()
        (expected_N * weight_N).sum().backward()
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-6, rtol=1e-5)


def test_half_precision_logits_are_normalised_in_float32() -> None:
    torch.manual_seed(0)
    logits_NV = (8 * torch.randn(5, 4000)).bfloat16()
    labels_N = torch.arange(5)
    logp_N = token_logprobs(Labelled(logits_NV, labels_N, labels_N, 5))
    assert logp_N.dtype == torch.float32
    torch.testing.assert_close(logp_N.double(), logits_NV.double().log_softmax(1).diagonal(), atol=1e-5, rtol=1e-6)


def test_kl_is_that_of_the_definition_with_both_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    pair, weight_N = (5 * torch.randn(2, 9, 11)), torch.randn(9)
    for chunk in (1, 30, 10_000):
        monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", chunk)
        ours = [x.clone().requires_grad_() for x in pair]
        theirs = [x.double().requires_grad_() for x in pair]
        logr_NV, logp_NV = (x.log_softmax(1) for x in theirs)
        expected_N = (logr_NV.exp() * (logr_NV - logp_NV)).sum(1)
        kl_N = kl_divergence(*ours)
        torch.testing.assert_close(kl_N.double(), expected_N, atol=1e-5, rtol=1e-5)
        (kl_N * weight_N).sum().backward()
        (expected_N * weight_N).sum().backward()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.grad.double(), other.grad, atol=1e-5, rtol=1e-5)


def test_kl_is_zero_for_equal_logits_and_survives_impossible_words() -> None:
    logits_NV = torch.tensor([[1.0, -torch.inf, 3.0], [0.0, 2.0, -torch.inf]], requires_grad=True)
    kl_N = kl_divergence(logits_NV.detach(), logits_NV)
    assert kl_N.tolist() == [0.0, 0.0]
    kl_N.sum().backward()
    assert torch.equal(logits_NV.grad, torch.zeros(2, 3))


def test_kl_of_unlike_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        kl_divergence(torch.zeros(2, 3), torch.zeros(1, 3))


def test_sums_and_means_go_to_their_rows() -> None:
    values_N, row_N = torch.tensor([1.0, 2.0, 4.0], requires_grad=True), torch.tensor([0, 0, 2])
    assert sequence_sum(values_N, row_N, 3).tolist() == [3.0, 0.0, 4.0]
    mean_B = sequence_mean(values_N, row_N, 3)
    assert mean_B[[0, 2]].tolist() == [1.5, 4.0]
    assert mean_B[1].isnan()
    mean_B[[0, 2]].sum().backward()
    assert values_N.grad.tolist() == [0.5, 0.5, 1.0]


def test_the_frozen_head_gives_the_logits_of_its_time(any_model: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    with torch.no_grad():
        expected_NV = labelled_logits(any_model, batch()).logits_NV
        frozen = FrozenHead.of(any_model)
        hidden_ND, labels_N, row_N, rows = labelled_hidden(any_model, batch("left", 2))
        for parameter in any_model.parameters():
            parameter.mul_(1.5)
        torch.testing.assert_close(frozen(hidden_ND), expected_NV, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(labelled_logits(any_model, batch()).logits_NV, expected_NV, atol=1e-2)
    assert (labels_N.shape, row_N.shape, rows) == ((12,), (12,), 3)
    assert not frozen(hidden_ND).requires_grad


def test_an_unknown_step_after_the_head_is_noticed() -> None:
    config = CohereConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, initializer_range=0.2,
        logit_scale=0.0625,
    )  # fmt: skip
    with pytest.raises(ExpungeError, match="after the head in a way that expunge does not know"):
        FrozenHead.of(CohereForCausalLM(config).eval())


def test_an_adapted_head_is_no_frozen_head(pico_llama: PreTrainedModel) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(pico_llama, LoraConfig(target_modules=["lm_head"], r=2))
    with pytest.raises(ExpungeError, match="leave the head out of the adapter"):
        FrozenHead.of(adapted)


def test_a_model_without_a_head_is_refused(pico_llama: PreTrainedModel, batch: Callable[..., Tokens]) -> None:
    with pytest.raises(ExpungeError, match="no output head"):
        labelled_logits(pico_llama.model, batch())
    with pytest.raises(ExpungeError, match="holds no transformers model"):
        labelled_logits(nn.Linear(2, 2), batch())
