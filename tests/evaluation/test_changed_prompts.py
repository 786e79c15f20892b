"""A prompt with changed embeddings is read in packs, and refused where nothing would change it."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from expunge.data.encode import Encoded
from expunge.evaluation.generate import generate
from expunge.evaluation.multiple_choice import score_answers
from expunge.models.hooks import edit

PROMPTS = [(1, 5, 9, 4), (1, 7, 8), (1, 11, 12, 13, 14)]


@dataclass(frozen=True)
class Halved:
    length: int

    def embedded(self, embeddings_TD: Tensor) -> Tensor:
        assert len(embeddings_TD) == self.length
        return embeddings_TD / 2


def questions() -> list[list[Encoded]]:
    return [[Encoded((*p, *end), len(p), False) for end in ((6, 7), (6, 8, 9), (10,))] for p in PROMPTS]


def test_only_the_prompt_is_changed_in_scoring_and_in_writing(pico_llama: LlamaForCausalLM) -> None:
    settings = [Halved(len(PROMPTS[0])), None, Halved(len(PROMPTS[2]))]
    found = score_answers(pico_llama, questions(), 0, max_tokens=64, max_rows=8, settings=settings)
    how: dict[str, Any] = {"pad_id": 0, "end_ids": [2], "max_new_tokens": 6}
    written = generate(pico_llama, PROMPTS, settings=settings, **how)
    table = pico_llama.get_input_embeddings()
    for prompt, answers, stats, text, setting in zip(PROMPTS, questions(), found, written, settings, strict=True):
        factor = 1.0 if setting is None else 0.5

        def halve(embeddings_BTD: Tensor, last: int = len(prompt), factor: float = factor) -> Tensor:
            return torch.cat([factor * embeddings_BTD[:, :last], embeddings_BTD[:, last:]], dim=1)

        name = next(name for name, module in pico_llama.named_modules() if module is table)
        with edit(pico_llama, {name: halve}), torch.no_grad():
            for answer, stat in zip(answers, stats, strict=True):
                logp_TV = pico_llama(torch.tensor([answer.ids])).logits[0].log_softmax(dim=-1)
                expected = [float(logp_TV[t - 1, answer.ids[t]]) for t in range(answer.answer_start, len(answer.ids))]
                assert stat.logp.tolist() == pytest.approx(expected, abs=1e-5)
            ids = list(prompt)
            while len(ids) < len(prompt) + 6 and (token := int(pico_llama(torch.tensor([ids])).logits[0, -1].argmax())) != 2:
                ids.append(token)
        assert text == tuple(ids[len(prompt) :])


def test_passes_that_would_leave_a_prompt_as_it_is_are_refused(pico_llama: LlamaForCausalLM) -> None:
    settings = [Halved(len(prompt)) for prompt in PROMPTS]
    with edit(pico_llama, {"model.layers.0": lambda hidden: hidden}):  # hooks need real rows
        with pytest.raises(TypeError, match="in packs only"):
            score_answers(pico_llama, questions(), 0, max_tokens=64, max_rows=8, settings=settings)
        with pytest.raises(TypeError, match="in packs only"):
            generate(pico_llama, PROMPTS, settings=settings, pad_id=0, end_ids=[2], max_new_tokens=2)
    with pytest.raises(TypeError, match="attached guard"):
        score_answers(pico_llama, questions(), 0, max_tokens=64, max_rows=8, settings=["noise"] * len(PROMPTS))
