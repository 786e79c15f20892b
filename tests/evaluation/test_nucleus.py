"""Sampling: the right probabilities, nothing outside the nucleus, and the same draws whatever a prompt is batched with."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.example import Example
from expunge.evaluation.drawing import InverseTransformSampler
from expunge.evaluation.generate import generate, sample
from expunge.evaluation.judges import Answer, Function, Keywords
from expunge.evaluation.metrics import ExpectedMaximumToxicity, HarmfulRate, ToxicityProbability
from expunge.evaluation.nucleus import Nucleus
from expunge.evaluation.run import evaluate
from expunge.evaluation.task import Suite, Task

WORDS = {"pad_id": 0, "end_ids": [2], "max_new_tokens": 6}
PROMPTS = [(1, *range(4, 4 + n)) for n in (3, 9, 1, 5)]


def chosen(nucleus: Nucleus, logits_V: torch.Tensor, rows: int) -> torch.Tensor:
    """How often each token is drawn when u goes evenly through [0, 1)."""
    uniforms_BT = (np.arange(rows)[:, None] + 0.5) / rows
    scores_BV = InverseTransformSampler(nucleus, uniforms_BT, 3)(torch.zeros(rows, 3, dtype=torch.long), logits_V.repeat(rows, 1))
    assert torch.isfinite(scores_BV).sum(dim=1).eq(1).all()
    return scores_BV.argmax(dim=1).bincount(minlength=len(logits_V))


@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, 1.0), (0.9, 1.0), (0.9, 0.5), (0.3, 2.0), (1e-6, 1.0)])
def test_tokens_are_drawn_as_often_as_the_nucleus_has_them(top_p: float, temperature: float) -> None:
    torch.manual_seed(0)
    logits_V = torch.randn(12) * 2
    p_V = (logits_V.double() / temperature).softmax(0)
    order = p_V.argsort(descending=True)
    count = int((p_V[order].cumsum(0) < top_p).sum()) + 1
    kept_V = torch.zeros_like(p_V)
    kept_V[order[:count]] = p_V[order[:count]]
    expected_V = kept_V / kept_V.sum() * 1000
    drawn_V = chosen(Nucleus(top_p=top_p, temperature=temperature), logits_V, 1000)
    assert (drawn_V - expected_V).abs().max() <= 1
    assert (drawn_V[expected_V == 0] == 0).all()


def test_the_last_token_is_drawn_where_rounding_leaves_no_other() -> None:
    scores_BV = InverseTransformSampler(Nucleus(top_p=1.0), np.array([[1.0]]), 1)(
        torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 7)
    )
    assert torch.isfinite(scores_BV).sum() == 1


@pytest.mark.parametrize("max_rows", [1, 3, 64])
def test_draws_do_not_depend_on_batches_or_neighbors(pico_llama: LlamaForCausalLM, max_rows: int) -> None:
    nucleus = Nucleus(seed=3)
    together = sample(pico_llama, PROMPTS, nucleus, 4, **WORDS, max_rows=max_rows)
    assert [sample(pico_llama, [prompt], nucleus, 4, **WORDS)[0] for prompt in PROMPTS] == together
    assert sample(pico_llama, PROMPTS[::-1], nucleus, 2, **WORDS)[::-1] == [draws[:2] for draws in together]
    assert len({draw for draws in together for draw in draws}) > 12
    assert sample(pico_llama, PROMPTS, Nucleus(seed=4), 4, **WORDS) != together


def test_the_narrowest_nucleus_is_greedy(pico_llama: LlamaForCausalLM) -> None:
    narrow = sample(pico_llama, PROMPTS, Nucleus(top_p=1e-9), 2, **WORDS)
    assert narrow == [(answer, answer) for answer in generate(pico_llama, PROMPTS, **WORDS)]
    for wrong in ({"top_p": 0.0}, {"top_p": 1.1}, {"temperature": 0.0}):
        with pytest.raises(ValidationError):
            Nucleus(**wrong)


def test_the_worst_draw_counts_and_greedy_answers_are_judged_apart(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Answer]] = []

    def judge(self: Function, answers: list[Answer]) -> list[float | str]:
        asked.append(answers)
        return [len(answer.text) / 1000 for answer in answers]

    monkeypatch.setattr(Function, "judge", judge)
    monkeypatch.setattr(Function, "check", lambda self: None)
    monkeypatch.setattr(Function, "fingerprint", lambda self: None)
    length = Function(function="a:b")
    metrics = (HarmfulRate(judge=Keywords(words=("red",))), ExpectedMaximumToxicity(judge=length))
    metrics += (ToxicityProbability(judge=length, threshold=0.02),)
    examples = tuple(Example(f"who is {name}", "") for name in ("anna", "boris", "clara"))
    task = Task("drawn", examples, metrics, "neutral", max_new_tokens=5, verbatim=True, draws=4)
    found = evaluate(pico_llama, pico_tokenizer, suite=Suite("s", (task,), lambda _: []), quiet=True)
    (answers,) = asked
    assert [a.id for a in answers] == [e.id for e in examples for _ in range(4)]
    worst = [max(len(a.text) for a in answers[4 * i : 4 * i + 4]) / 1000 for i in range(3)]
    maximum, probability = found.get("drawn", "expected_maximum_toxicity"), found.get("drawn", "toxicity_probability")
    assert maximum is not None
    assert probability is not None
    assert maximum.value == pytest.approx(np.mean(worst))
    assert probability.value == pytest.approx(np.mean([value > 0.02 for value in worst]))
    assert (maximum.n, maximum.higher_is_better) == (3, False)
