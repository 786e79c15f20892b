"""Shortcuts are taken only where they give a model's own values: Jamba, Mamba, RWKV and LongRoPE are not like Llama."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    JambaConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RwkvConfig,
)

from expunge.data.encode import Encoded
from expunge.errors import ExpungeError
from expunge.evaluation.engine import Engine
from expunge.evaluation.generate import generate
from expunge.evaluation.shortcuts import shortcuts_of

Ids = tuple[int, ...]
_COMMON = {"vocab_size": 90, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
CONFIGS: dict[str, PreTrainedConfig] = {
    "jamba": JambaConfig(
        **_COMMON, **_HEADS, num_hidden_layers=2, num_experts=2, attn_layer_offset=1, attn_layer_period=2, expert_layer_period=2,
        expert_layer_offset=1, mamba_d_state=4, mamba_d_conv=3, mamba_dt_rank=4,
    ),
    "mamba": MambaConfig(**_COMMON, num_hidden_layers=2, state_size=4),
    "rwkv": RwkvConfig(**_COMMON, num_hidden_layers=2, attention_hidden_size=32, context_length=64),
    "longrope": Phi3Config(
        **_COMMON, **_HEADS, num_hidden_layers=2, max_position_embeddings=128, original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4,
            "original_max_position_embeddings": 16,
        },
    ),
}  # fmt: skip


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    return model


def questions(count: int = 4) -> list[list[Encoded]]:
    """Three answers of different length to prompts of different length, some of them beyond 16 tokens."""
    rng = np.random.default_rng(0)
    found = []
    for q in range(count):
        prompt = (1, *rng.integers(4, 90, size=4 + 5 * q).tolist())
        answers = [(*prompt, *rng.integers(4, 90, size=2 + a).tolist(), 2) for a in range(3)]
        found.append([Encoded(ids, len(prompt), True) for ids in answers])
    return found


def alone(model: PreTrainedModel, row: Encoded) -> np.ndarray:
    with torch.no_grad():
        logp_TV = model(torch.tensor([row.ids[:-1]])).logits[0].float().log_softmax(-1)
    labels = torch.tensor(row.ids[row.answer_start :])
    return logp_TV[row.answer_start - 1 :][torch.arange(len(labels)), labels].numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_each_row_alone(name: str) -> None:
    model = made(name)
    engine = Engine(model, 0)
    scored = engine.score([row for answers in questions() for row in answers])
    chosen = [stats for answers in engine.score_answers(questions()) for stats in answers]
    for row, *found in zip([row for answers in questions() for row in answers], scored, chosen, strict=True):
        for stats in found:
            np.testing.assert_allclose(stats.logp, alone(model, row), atol=5e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_texts_are_those_of_the_models_own_greedy_decoding_row_by_row(name: str) -> None:
    model = made(name)
    prompts = [answers[0].ids[: answers[0].answer_start] for answers in questions()]
    for prompt, answer in zip(prompts, generate(model, prompts, pad_id=0, end_ids=[2], max_new_tokens=6), strict=True):
        with torch.no_grad():
            ids = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=0)  # type: ignore[operator]
        own = ids[0, len(prompt) :].tolist()
        assert answer == tuple(own[: own.index(2)] if 2 in own else own)


def test_what_does_not_hold_is_not_done() -> None:
    assert not shortcuts_of(made("jamba")).cache
    assert not shortcuts_of(made("mamba")).cache
    assert not shortcuts_of(made("rwkv")).left_padding
    assert shortcuts_of(made("longrope")).longest == 16


def test_plain_transformers_take_every_shortcut(pico_llama: LlamaForCausalLM) -> None:
    assert shortcuts_of(pico_llama)[:7] == (True,) * 7


def test_rounding_in_sixteen_bits_hides_no_shortcut_and_no_fault() -> None:
    """With 30 blocks of large weights a log-probability is off by more than 0.3 nats from rounding alone."""
    torch.manual_seed(0)
    deep = LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=64, num_hidden_layers=30, num_attention_heads=4, initializer_range=0.3
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(deep).eval().bfloat16()
    assert shortcuts_of(model)[:7] == (True,) * 7
    for name in ("jamba", "mamba"):
        assert not shortcuts_of(made(name).bfloat16()).cache


def greedy(model: PreTrainedModel, prompt: Ids, steps: int) -> Ids:
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == 2:
            break
        ids.append(token)
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "gpt2", "gpt_neox", "bloom", "opt", "falcon", "qwen3"])
def test_known_beginnings_and_batches_leave_texts_as_plain_greedy_decoding_writes_them(
    model_of: Callable[..., PreTrainedModel], model_type: str
) -> None:
    model = model_of(model_type)
    rng = np.random.default_rng(0)
    prompts: list[Ids] = [(1, *rng.integers(4, 60, size=int(n)).tolist()) for n in rng.integers(1, 14, size=9)]
    plain = [greedy(model, prompt, 10) for prompt in prompts]
    known = [text[:cut] for text, cut in zip(plain, (0, 1, 3, 10, 5, 0, 2, 7, 10), strict=True)]
    assert generate(model, prompts, pad_id=0, end_ids=[2], max_new_tokens=10, known=known) == plain
    assert generate(model, prompts, pad_id=0, end_ids=[2], max_new_tokens=10) == plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [RobertaConfig, BertConfig], ids=lambda cls: cls.model_type)
def test_a_model_that_reads_text_in_another_way_is_refused_by_name(config: type[PreTrainedConfig], dtype: torch.dtype) -> None:
    """RoBERTa's positions begin behind its pad token's id, and BERT reads both ways unless it is told that it decodes."""
    made = config(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, is_decoder=config is RobertaConfig,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made).eval().to(dtype)
    with pytest.raises(ExpungeError, match=rf"type {config.model_type} do not read text .* differs by .* nats"):
        Engine(model, 1).score([row for answers in questions() for row in answers])
