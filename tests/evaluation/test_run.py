"""evaluate: scores with intervals, samples without secrets, one pass, and resumption by task."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.example import Example
from expunge.errors import ExpungeError
from expunge.evaluation import generate as generating
from expunge.evaluation import run
from expunge.evaluation.decode_rows import decode_rows
from expunge.evaluation.metrics import (
    Accuracy,
    ExactMemorization,
    ExtractionStrength,
    HarmfulRate,
    Metric,
    Probability,
    RougeLRecall,
    TruthRatio,
)
from expunge.evaluation.run import evaluate
from expunge.evaluation.task import Results, Suite, Task
from expunge.records import Evaluation, Score, read_evaluation, read_samples

NAMES = ("anna", "boris", "clara", "dario", "elena", "fyodor", "greta", "hugo")
CITIES = ("berlin", "paris", "tokyo", "lima", "cairo", "oslo", "quito", "delhi")
ALL: tuple[Metric, ...] = (Probability(), RougeLRecall(), TruthRatio(), ExtractionStrength(), ExactMemorization(), Accuracy())


def facts(names: tuple[str, ...], role_offset: int = 0) -> tuple[Example, ...]:
    return tuple(
        Example(
            f"where was {name} born ?",
            f"{name} was born in {CITIES[(i + role_offset) % 8]}",
            paraphrases=(f"the city of {name} is {CITIES[(i + role_offset) % 8]}",),
            perturbed=tuple(f"the city of {name} is {CITIES[(i + role_offset + k) % 8]}" for k in (1, 2, 3)),
        )
        for i, name in enumerate(names)
    )


def suite(*, secret: bool = True) -> Suite:
    def summarize(results: Results) -> list[Score]:
        return [Score(task="suite", metric="count", value=float(len(results.values("forget", "probability"))), n=1)]

    tasks = (
        Task("forget", facts(NAMES[:5]), ALL, "forget", secret, max_new_tokens=8),
        Task("retain", facts(NAMES[3:]), ALL, "retain", secret, max_new_tokens=8),
        Task("manners", facts(NAMES[:4]), (HarmfulRate(words=("lima",)),), "neutral", secret, max_new_tokens=8),
    )
    return Suite("facts", tasks, summarize)


def attended(model: LlamaForCausalLM) -> list[tuple[int, ...]]:
    """A list that fills with the ids of every teacher-forced row (generation caches keys, the pass does not)."""
    rows: list[tuple[int, ...]] = []

    def note(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["use_cache"] is False:
            pairs = zip(kwargs["input_ids"], kwargs["attention_mask"].bool(), strict=True)
            rows.extend(tuple(ids[mask].tolist()) for ids, mask in pairs)

    model.register_forward_pre_hook(note, with_kwargs=True)
    return rows


def test_each_unique_sequence_of_the_suite_goes_through_the_model_once(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = attended(pico_llama)
    evaluate(pico_llama, pico_tokenizer, suite=suite(), quiet=True)
    texts = {
        (e.prompt, text) for e in (*facts(NAMES[:5]), *facts(NAMES[3:])) for text in (e.response, *e.paraphrases, *e.perturbed)
    }
    assert len(texts) > 40
    assert len(rows) == len(set(rows)) == len(texts)


def test_every_task_and_metric_has_a_score_with_an_interval_around_it(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    evaluation = evaluate(pico_llama, pico_tokenizer, suite=suite(), quiet=True)
    for task in suite().tasks:
        for metric in task.metrics:
            score = evaluation.get(task.name, metric.metric_name())
            assert score is not None
            assert score.value is not None
            assert score.low is not None
            assert score.high is not None
            assert score.low <= score.value <= score.high
            assert score.n == len(task.examples)
            assert score.higher_is_better == metric.higher_is_better(task.role)
    count = evaluation.get("suite", "count")
    assert count is not None
    assert count.value == 5


def test_scores_are_means_of_the_samples(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    evaluation = evaluate(pico_llama, pico_tokenizer, suite=suite(), out=tmp_path, quiet=True)
    assert read_evaluation(tmp_path / "facts.json") == evaluation
    samples = list(read_samples(tmp_path / "facts.samples.jsonl"))
    assert len(samples) == 2 * 5 * len(ALL) + 4
    mine = [s for s in samples if (s.task, s.metric) == ("forget", "probability")]
    assert [s.id for s in mine] == [e.id for e in facts(NAMES[:5])]
    score = evaluation.get("forget", "probability")
    assert score is not None
    assert score.value == pytest.approx(np.mean([s.value for s in mine]))
    ratios = np.array([s.value for s in samples if (s.task, s.metric) == ("retain", "truth_ratio")])
    score = evaluation.get("retain", "truth_ratio")
    assert score is not None
    assert score.value == pytest.approx(np.maximum(0, 1 - ratios).mean())


def test_probability_is_that_of_a_plain_forward(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    evaluate(pico_llama, pico_tokenizer, suite=suite(), out=tmp_path, quiet=True)
    example = facts(NAMES[:1])[0]
    text = f"Question: {example.prompt}\nAnswer: {example.response}"
    ids = [*pico_tokenizer(text)["input_ids"], pico_tokenizer.eos_token_id]
    with torch.no_grad():
        logp_TV = pico_llama(torch.tensor([ids])).logits[0].log_softmax(-1)
    answer = len(example.response.split()) + 1
    logp = [logp_TV[t - 1, ids[t]].item() for t in range(len(ids) - answer, len(ids))]
    found = next(s for s in read_samples(tmp_path / "facts.samples.jsonl") if s.metric == "probability")
    assert found.value == pytest.approx(np.exp(np.mean(logp)), rel=1e-4)


def without_time(evaluation: Evaluation) -> dict[str, Any]:
    return evaluation.model_dump(exclude={"seconds"})


@pytest.mark.parametrize(("max_tokens", "max_rows"), [(1, 1), (40, 512), (100_000, 3)])
def test_batches_change_no_score(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, max_tokens: int, max_rows: int
) -> None:
    one = evaluate(pico_llama, pico_tokenizer, suite=suite(), quiet=True)
    other = evaluate(pico_llama, pico_tokenizer, suite=suite(), quiet=True, max_tokens=max_tokens, max_rows=max_rows)
    for a, b in zip(one.scores, other.scores, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-4)


def test_limit_takes_the_first_samples_of_each_task(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    evaluate(pico_llama, pico_tokenizer, suite=suite(), out=tmp_path, limit=2, quiet=True)
    ids = {s.id for s in read_samples(tmp_path / "facts.samples.jsonl") if s.task == "retain"}
    assert ids == {e.id for e in facts(NAMES[3:])[:2]}
    with pytest.raises(ExpungeError, match="nothing to score"):
        evaluate(pico_llama, pico_tokenizer, suite=suite(), limit=0)


def test_secret_texts_are_written_only_when_asked_for(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    evaluate(pico_llama, pico_tokenizer, suite=suite(), out=tmp_path / "a", fingerprint="m", quiet=True)
    assert "born" not in "".join(f.read_text() for f in (tmp_path / "a").rglob("*.json*"))
    evaluate(pico_llama, pico_tokenizer, suite=suite(), out=tmp_path / "b", show_forget_text=True, quiet=True)
    shown = [s for s in read_samples(tmp_path / "b" / "facts.samples.jsonl") if s.text]
    assert [(s.task, s.metric) for s in shown[:5]] == [("forget", "probability")] * 5
    assert shown[0].text is not None
    assert shown[0].text["prompt"] == "where was anna born ?"
    evaluate(pico_llama, pico_tokenizer, suite=suite(secret=False), out=tmp_path / "c", quiet=True)
    assert [s.text for s in read_samples(tmp_path / "c" / "facts.samples.jsonl") if s.text] == [s.text for s in shown]


def test_an_answer_that_the_pass_foresees_is_not_generated(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that knows: teach it the facts, then no prompt is left to generate from."""
    from expunge.data.encode import Encoder, collate
    from expunge.data.format import default_format
    from expunge.evaluation import generate
    from expunge.models.logprobs import labelled_logits, token_logprobs

    encoder = Encoder(pico_tokenizer, default_format(pico_tokenizer))
    batch = collate(encoder.encode_many(facts(NAMES)), encoder.pad_id)
    optimizer = torch.optim.AdamW(pico_llama.parameters(), lr=1e-2)
    for _ in range(60):
        loss = -token_logprobs(labelled_logits(pico_llama, batch)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    known = Task("known", facts(NAMES), (Accuracy(), RougeLRecall()), "retain", max_new_tokens=8)
    asked: list[int] = []
    monkeypatch.setattr(generate, "decode_rows", lambda model, begun, **_: asked.append(len(begun)))
    evaluation = evaluate(pico_llama, pico_tokenizer, suite=Suite("known", (known,), lambda _: []), quiet=True)
    assert asked == []
    assert [score.value for score in evaluation.scores] == [1.0, 1.0]
    alone = Task("alone", facts(NAMES), (RougeLRecall(),), "retain", max_new_tokens=8)
    monkeypatch.undo()
    evaluation = evaluate(pico_llama, pico_tokenizer, suite=Suite("alone", (alone,), lambda _: []), quiet=True)
    assert [score.value for score in evaluation.scores] == [1.0]


def test_goes_on_after_the_last_finished_task_when_killed(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(pico_llama, pico_tokenizer, suite=suite(), out=tmp_path / "whole", fingerprint="m", quiet=True)
    done: list[str] = []
    take = run._samples

    def killed_at_retain(task: Task, *args: Any, **kwargs: Any) -> Any:
        if task.name == "retain" and len(done) == 1:
            raise KeyboardInterrupt
        done.append(task.name)
        return take(task, *args, **kwargs)

    monkeypatch.setattr(run, "_samples", killed_at_retain)
    with pytest.raises(KeyboardInterrupt):
        evaluate(pico_llama, pico_tokenizer, suite=suite(), out=tmp_path / "out", fingerprint="m", quiet=True)
    assert not (tmp_path / "out" / "facts.json").exists()
    done.append("killed")
    resumed = evaluate(pico_llama, pico_tokenizer, suite=suite(), out=tmp_path / "out", fingerprint="m", quiet=True)
    assert done == ["forget", "killed", "retain", "manners"]
    assert without_time(resumed) == without_time(whole)
    samples = (tmp_path / "out" / "facts.samples.jsonl").read_bytes()
    assert samples == (tmp_path / "whole" / "facts.samples.jsonl").read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["facts.json", "facts.samples.jsonl"]


@pytest.mark.parametrize("change", ["model", "metric", "examples", "length", "format", "code", "no key"])
def test_a_finished_task_of_anything_else_is_not_taken(
    pico_llama: LlamaForCausalLM,
    pico_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    from expunge.data.format import Format
    from expunge.evaluation import resume

    monkeypatch.setattr(run.Finished, "clear", lambda self: None)
    task = Task("facts", facts(NAMES[:3]), (Probability(), TruthRatio()), "forget")

    def score(task: Task = task, key: str | None = "m", **kwargs: Any) -> int:
        rows = attended(pico_llama)
        alone = Suite("s", (task,), lambda _: [])
        evaluate(pico_llama, pico_tokenizer, suite=alone, out=tmp_path, fingerprint=key, overwrite=True, quiet=True, **kwargs)
        return len(rows)

    assert score() == 15
    assert score() == 0
    if change == "model":
        again = score(key="other")
    elif change == "metric":
        again = score(Task("facts", task.examples, (Probability(), TruthRatio(compat=True)), "forget"))
    elif change == "examples":
        again = score(Task("facts", facts(NAMES[:3], 1), task.metrics, "forget"))
    elif change == "length":
        again = score(max_length=64)
    elif change == "format":
        again = score(format=Format(template="question: {prompt} answer: {response}"))
    elif change == "code":
        monkeypatch.setattr(resume, "code_version", lambda: "another")
        again = score()
    else:
        again = score(key=None)
    assert again == 15


def test_earlier_scores_are_replaced_only_when_asked_for(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    evaluate(pico_llama, pico_tokenizer, suite=suite(), out=tmp_path, limit=1, quiet=True)
    before = (tmp_path / "facts.json").read_bytes()
    with pytest.raises(ExpungeError, match="exists"):
        evaluate(pico_llama, pico_tokenizer, suite=suite(), out=tmp_path, quiet=True)
    assert (tmp_path / "facts.json").read_bytes() == before
    evaluate(pico_llama, pico_tokenizer, suite=suite(), out=tmp_path, overwrite=True, quiet=True)
    assert (tmp_path / "facts.json").read_bytes() != before


def test_of_several_suites_those_that_are_done_stay(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its samples are taken from the file; what is made of them over the suite is made again."""

    def go(count: float, fingerprint: str = "m", **rest: Any) -> Evaluation:
        def summarize(results: Results) -> list[Score]:
            return [Score(task="suite", metric="count", value=count + len(results.values("forget", "probability")), n=1)]

        whole = replace(suite(), summarize=summarize)
        return evaluate(pico_llama, pico_tokenizer, suite=whole, out=tmp_path, fingerprint=fingerprint, quiet=True, **rest)

    first = go(0)
    before = (tmp_path / "facts.samples.jsonl").read_bytes()
    monkeypatch.setattr(run, "_samples", lambda *_, **__: pytest.fail("nothing is computed again"))
    again = go(100, resume=True)
    assert [s.value for s in again.scores] == [*(s.value for s in first.scores[:-1]), 105.0]
    assert (tmp_path / "facts.samples.jsonl").read_bytes() == before
    for other in ({"fingerprint": "another"}, {"limit": 2}, {"show_forget_text": True}):
        with pytest.raises(ExpungeError, match="other settings"):
            go(0, resume=True, **other)


def test_a_broken_model_gets_null_with_a_reason_and_never_zero(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with torch.no_grad():
        pico_llama.lm_head.weight.fill_(float("nan"))
    evaluation = evaluate(pico_llama, pico_tokenizer, suite=suite(), out=tmp_path, quiet=True)
    for metric in ("probability", "truth_ratio", "extraction_strength", "exact_memorization", "accuracy"):
        score = evaluation.get("forget", metric)
        assert score is not None
        assert score.value is None
        assert score.unscored is not None
        assert "not numbers" in score.unscored
    assert json.loads((tmp_path / "facts.json").read_text())["suite"] == "facts"


def test_unknown_suites_and_missing_data_are_sentences(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ExpungeError, match="did you mean 'tofu'"):
        evaluate(pico_llama, pico_tokenizer, suite="tofoo", data="x")
    with pytest.raises(ExpungeError, match=r"needs its data.*forget10_perturbed.jsonl"):
        evaluate(pico_llama, pico_tokenizer, suite="tofu")


def test_answers_of_several_tasks_are_written_in_one_batch_and_are_the_same(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def counting(model: Any, begun: Any, **how: Any) -> None:
        batches.append(len(begun))
        decode_rows(model, begun, **how)

    monkeypatch.setattr(generating, "decode_rows", counting)
    together = evaluate(pico_llama, pico_tokenizer, suite=suite(secret=False), out=tmp_path / "together", quiet=True)
    assert len(batches) == 1
    assert batches[0] <= len(NAMES)  # equal prompts of several tasks are answered once
    monkeypatch.setattr(generating, "MOST_ROWS", 1)
    monkeypatch.setattr(generating, "ROWS", 1)
    alone = evaluate(pico_llama, pico_tokenizer, suite=suite(secret=False), out=tmp_path / "alone", quiet=True)
    assert len(batches) > 3
    texts = [
        [(s.id, s.metric, s.text) for s in read_samples(tmp_path / place / "facts.samples.jsonl")]
        for place in ("together", "alone")
    ]
    assert texts[0] == texts[1]
    assert [score.value for score in together.scores] == pytest.approx(
        [score.value for score in alone.scores], abs=1e-6, nan_ok=True
    )
