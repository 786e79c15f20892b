"""Verbatim tasks: the benchmark's own text and nothing around it, cut as lm-eval cuts it; answers with blanks; stop texts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.example import Example
from expunge.data.questions import continued, lettered
from expunge.evaluation.metrics import Accuracy, ExactMatch, Metric, PromptCut
from expunge.evaluation.run import evaluate
from expunge.evaluation.shortcuts import shortcuts_of
from expunge.evaluation.task import Suite, Task
from expunge.records import Sample, read_samples

POSITIONS = 256


def samples(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, tmp_path: Path, max_rows: int = 512
) -> list[Sample]:
    suite = Suite("trial", (task,), lambda results: [])
    evaluate(
        model, tokenizer, suite=suite, out=tmp_path / "out", overwrite=True, show_forget_text=True, quiet=True, max_rows=max_rows
    )
    return list(read_samples(tmp_path / "out" / "trial.samples.jsonl"))


def lm_eval_choice(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, example: Example) -> int:
    """What lm-eval does, step by step: the context's tokens, the whole text's tokens, their last 257, one pass each."""
    sums = []
    for choice in example.choices:
        context = tokenizer(example.prompt)["input_ids"]
        whole = tokenizer(f"{example.prompt}{choice}")["input_ids"]
        answer = whole[len(context) :]
        read = torch.tensor([whole[-(POSITIONS + 1) :][:-1]])
        with torch.no_grad():
            logp = model(read).logits[0].log_softmax(dim=-1)[-len(answer) :]
        sums.append(float(logp.gather(1, torch.tensor(answer)[:, None]).sum()))
    return max(range(len(sums)), key=sums.__getitem__)


def questions(lengths: Sequence[int]) -> list[Example]:
    words = "red green blue black white cat dog horse bird fish baker pilot".split()  # noqa: SIM905
    made = []
    for i, length in enumerate(lengths):
        text = " ".join(words[(i * 5 + k * 7) % 12] for k in range(length))
        choices = tuple(words[(i + 3 * k) % 12] + " " + words[(i + 5 * k + 1) % 12] * (k % 2) for k in range(4))
        made.append(Example(text, choices[i % 4], choices, i % 4))
    return made


@pytest.mark.parametrize("render", [lettered, continued])
def test_choices_are_scored_as_lm_eval_scores_them(
    byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, render: type
) -> None:
    """Twenty questions, some much longer than the model takes."""
    asked = [render(question) for question in questions(range(2, 82, 4))]
    found = samples(
        byte_llama, byte_tokenizer, Task("t", tuple(asked), (Accuracy(), PromptCut()), "retain", verbatim=True), tmp_path
    )
    right = [float(lm_eval_choice(byte_llama, byte_tokenizer, question) == question.answer) for question in asked]
    assert [s.value for s in found if s.metric == "accuracy"] == right
    cut = [s.value for s in found if s.metric == "prompt_cut"]
    longest = [max(len(f"{q.prompt}{choice}") for choice in q.choices) for q in asked]
    assert cut == [float(length > POSITIONS) for length in longest]
    assert 0.0 in cut
    assert 1.0 in cut


def test_no_template_stands_around_a_verbatim_prompt(
    byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(byte_tokenizer, "chat_template", "{% for m in messages %}[{{ m.content }}]{% endfor %}")
    example = Example("abc", " d", (" d", " e"), 0)
    read: list[str] = []
    shortcuts_of(byte_llama)  # measured before, once
    inner = byte_llama.forward

    def forward(*arguments: object, **named: torch.Tensor) -> object:
        read.extend(byte_tokenizer.batch_decode(named["input_ids"], skip_special_tokens=True))
        return inner(*arguments, **named)

    monkeypatch.setattr(byte_llama, "forward", forward)
    task = Task("t", (example,), (Accuracy(),), "retain", verbatim=True)
    samples(byte_llama, byte_tokenizer, task, tmp_path)
    assert all(text.startswith("abc") and "[" not in text for text in read)
    read.clear()
    samples(byte_llama, byte_tokenizer, replace(task, verbatim=False), tmp_path)
    assert any("[abc]" in text for text in read)


def writing(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str) -> LlamaForCausalLM:
    """A model that reads only the last byte, and after the i-th byte of `text` (all different) writes the one after it."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(set(ids)) == len(ids)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        for place, (now, after) in enumerate(zip(ids, [*ids[1:], ids[0]], strict=True)):
            assert place < 32
            model.model.embed_tokens.weight[now, place] = 1.0
            model.lm_head.weight[after, place] = 1.0
    return model


@pytest.mark.parametrize("max_rows", [1, 8])
def test_an_answer_keeps_its_blanks_and_ends_before_the_stop_text(
    byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, max_rows: int
) -> None:
    model = writing(byte_llama, byte_tokenizer, ">  a\nb#c".replace("  ", " \t"))
    prompts = (">", "xx>", "c>", "#")
    task = Task(
        "t",
        tuple(Example(prompt, "x") for prompt in prompts),
        (ExactMatch(),),
        "retain",
        max_new_tokens=20,
        verbatim=True,
        stop=("b#", "zz"),
    )
    found = samples(model, byte_tokenizer, task, tmp_path, max_rows)
    assert [s.text["generated"] for s in found if s.text] == [" \ta\n", " \ta\n", " \ta\n", "c> \ta\n"]


def test_a_stop_text_saves_the_tokens_after_it(
    byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = writing(byte_llama, byte_tokenizer, ">abcdef")
    task = Task("t", (Example(">", "x"),), (ExactMatch(),), "retain", max_new_tokens=100, verbatim=True, stop=("cd",))
    steps = []
    shortcuts_of(model)  # measured before, once
    inner = model.forward

    def forward(*arguments: object, **named: object) -> object:
        steps.append(1)
        return inner(*arguments, **named)

    monkeypatch.setattr(model, "forward", forward)
    (sample,) = samples(model, byte_tokenizer, task, tmp_path)
    assert sample.text is not None
    assert sample.text["generated"] == "ab"
    assert len(steps) == 4


def test_a_long_prompt_leaves_its_end_and_room_for_the_answer(
    byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = writing(byte_llama, byte_tokenizer, ">abcdef")
    long = Example("x" * 400 + ">", "x")
    metrics: tuple[Metric, ...] = (ExactMatch(), PromptCut())
    task = Task("t", (long, Example(">", "x")), metrics, "retain", max_new_tokens=200, verbatim=True)
    found = samples(model, byte_tokenizer, task, tmp_path)
    assert [s.value for s in found if s.metric == "prompt_cut"] == [1.0, 0.0]
    written = [s.text["generated"] for s in found if s.text]
    assert [len(text) for text in written] == [POSITIONS // 2, POSITIONS // 2], "the answer gets at most half of the positions"
    assert all(text.startswith("abcdef>abc") for text in written)
