"""Defects of other evaluation code that must not come back here, where no test of a metric holds them already.

Elsewhere: extraction strength of one wrong token (metrics/test_metrics.py), KS on folded ratios (there too), the geometric truth
ratio (metrics/test_golden_tofu.py), real end tokens that are masked as padding (test_engine.py), results cached by the metric's
name and a pass for each metric (test_run.py), perplexity over padding (metrics/test_text_metrics.py), forget texts in logs
(suites/test_membership.py), today's date in a prompt and raw text with an end token (data/test_encode.py).
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.example import Example
from expunge.evaluation.metrics import Probability, Rouge, TruthRatio
from expunge.evaluation.run import evaluate
from expunge.evaluation.task import Suite, Task
from expunge.records import read_samples

FACTS = tuple(
    Example(f"where is {name} ?", "in lima", perturbed=("in oslo", "in paris")) for name in ("anna", "boris", "clara", "dario")
)


def samples(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: tuple[Example, ...], out: Path
) -> dict[tuple[str, str], float | None]:
    task = Task("facts", examples, (TruthRatio(), Probability(among_perturbed=True)), "forget")
    evaluate(model, tokenizer, suite=Suite("facts", (task,), lambda _: []), out=out, quiet=True)
    return {(row.metric, row.id): row.value for row in read_samples(out / "facts.samples.jsonl")}


def test_an_unscored_example_does_not_move_the_values_of_the_others_to_wrong_examples(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    whole = samples(pico_llama, pico_tokenizer, FACTS, tmp_path / "whole")
    gap = (replace(FACTS[0], perturbed=()), FACTS[1], replace(FACTS[2], perturbed=()), FACTS[3])
    some = samples(pico_llama, pico_tokenizer, gap, tmp_path / "some")
    assert some.keys() == whole.keys()
    assert len(set(whole.values())) == 8
    for (metric, id), value in some.items():
        missing = id in (FACTS[0].id, FACTS[2].id)
        assert value is None if missing else value == pytest.approx(whole[metric, id], rel=1e-5)


@pytest.mark.parametrize("verbatim", [False, True])
def test_a_prompt_with_the_text_of_a_special_token_loses_nothing_of_its_answer(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, verbatim: bool
) -> None:
    """Answers that are cut out of the text by the prompt's length in characters begin too late: the text has lost the token."""
    with torch.no_grad():
        pico_llama.lm_head.weight[2] -= 10 * pico_llama.lm_head.weight[2]  # so that answers are long
    prompt = "</s> </s> </s> who is anna ?"
    task = Task("asked", (Example(prompt, "a nurse"),), (Rouge(),), "forget", max_new_tokens=6, verbatim=verbatim)
    suite = Suite("asked", (task,), lambda _: [])
    evaluate(pico_llama, pico_tokenizer, suite=suite, out=tmp_path, show_forget_text=True, quiet=True)
    [row] = read_samples(tmp_path / "asked.samples.jsonl")
    text = prompt if verbatim else f"Question: {prompt}\nAnswer:"
    ids = pico_tokenizer(text, return_tensors="pt").input_ids
    assert ids.tolist()[0].count(2) == 3
    written = pico_llama.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=2)[0, ids.shape[1] :]
    assert row.text is not None
    assert row.text["generated"].strip() == str(pico_tokenizer.decode(written, skip_special_tokens=True)).strip() != ""
