"""The membership suite: who was trained on is found, one pass serves all attacks, and missing models are named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.encode import Encoder
from expunge.data.format import default_format
from expunge.data.read import read_examples
from expunge.errors import ExpungeError
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites import Membership
from expunge.records import Evaluation, read_samples

NAMES = ["anna", "boris", "clara", "dario", "elena", "fyodor", "greta", "hugo", "irma", "jonas"]
PLACES = ["berlin", "paris", "tokyo", "lima", "cairo", "oslo", "quito", "delhi", "accra", "minsk"]
ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_gradnorm")


def texts(shift: int) -> list[str]:
    return [f"{name} was born in {PLACES[(i + shift) % 10]}" for i, name in enumerate(NAMES)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, shift in (("forget", 0), ("holdout", 3)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(shift)))
    return tmp_path


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int = 60) -> LlamaForCausalLM:
    batch = tokenizer(texts(0), return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def value(evaluation: Evaluation, metric: str) -> float:
    score = evaluation.get("suite", metric)
    assert score is not None
    assert score.value is not None, score.unscored
    return score.value


def test_a_model_trained_on_the_forget_set_is_caught_by_every_attack_and_an_untrained_one_by_none(
    folder: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    suite = Membership(gradnorm=True)
    before = evaluate(pico_llama, pico_tokenizer, suite=suite, data=folder, out=folder / "before", quiet=True)
    for attack in ATTACKS:
        score = before.get("suite", attack)
        assert score is not None
        assert score.low is not None
        assert score.high is not None
        assert score.low < 0.5 < score.high
        assert score.n == 20
    train(pico_llama, pico_tokenizer)
    suite = Membership(gradnorm=True, retain_scores=folder / "before", reference_scores=folder / "before")
    after = evaluate(pico_llama, pico_tokenizer, suite=suite, data=folder, quiet=True)
    for attack in (*ATTACKS, "mia_reference"):
        assert value(after, attack) > 0.9
    assert value(after, "privleak") < -80
    assert value(after, "mia_loss_relative_difference") == pytest.approx(
        100 * (value(after, "mia_loss") / value(before, "mia_loss") - 1)
    )


def test_the_peers_reading_scores_each_text_without_its_end_token_under_a_name_of_its_own(
    tmp_path: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Against a plain pass over each text: the labels are the answer's words, without the end token behind them."""
    for name, shift in (("forget", 0), ("holdout", 3)):
        lines = [json.dumps({"prompt": "who was born ?", "response": text}) + "\n" for text in texts(shift)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    suite = Membership(gradnorm=True, compat=True)
    evaluate(pico_llama, pico_tokenizer, suite=suite, data=tmp_path, out=tmp_path / "out", quiet=True)
    samples = read_samples(tmp_path / "out" / "membership_compat.samples.jsonl")
    found = {(sample.id, sample.metric): sample.value for sample in samples if sample.task == "forget"}
    encoder = Encoder(pico_tokenizer, default_format(pico_tokenizer))
    for example in read_examples(tmp_path / "forget.jsonl"):
        row = encoder.encode(example)
        assert row.has_end
        labels = torch.tensor(row.ids[row.answer_start : -1])
        pico_llama.zero_grad()
        logp_TV = pico_llama(torch.tensor([row.ids])).logits[0, row.answer_start - 1 : -2].log_softmax(-1)
        logp_T = logp_TV[range(len(labels)), labels]
        (-logp_T.mean()).backward()
        lowest = logp_T.sort().values[: max(1, int(0.4 * len(labels)))]
        norms = [weight.grad.norm().item() for weight in pico_llama.parameters() if weight.grad is not None]
        assert found[example.id, "mia_min_k"] == pytest.approx(lowest.mean().item(), rel=1e-5)
        assert found[example.id, "mia_gradnorm"] == pytest.approx(-np.mean(norms), rel=1e-4)


def test_attacks_add_no_forward(folder: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast) -> None:
    rows: list[int] = []
    pico_llama.register_forward_pre_hook(lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    evaluate(pico_llama, pico_tokenizer, suite=Membership(), data=folder, quiet=True)
    assert sum(rows) == 20


def test_samples_carry_one_number_per_text_and_attack_and_tasks_no_mean_of_them(
    folder: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    evaluation = evaluate(pico_llama, pico_tokenizer, suite=Membership(), data=folder, out=folder / "out", quiet=True)
    assert {score.task for score in evaluation.scores} == {"suite"}
    samples = list(read_samples(folder / "out/membership.samples.jsonl"))
    assert len(samples) == 2 * 10 * 4
    assert all(sample.value is not None and np.isfinite(sample.value) for sample in samples)
    assert "born" not in (folder / "out/membership.samples.jsonl").read_text()


def test_without_a_retain_model_privleak_says_how_to_make_one(
    folder: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    evaluation = evaluate(pico_llama, pico_tokenizer, suite="membership", data=folder, quiet=True)
    for metric, flag in (("privleak", "--retain-scores DIR"), ("mia_reference", "--options reference_scores=DIR")):
        score = evaluation.get("suite", metric)
        assert score is not None
        assert score.value is None
        assert score.unscored is not None
        assert flag in score.unscored


def test_a_retain_model_scored_on_fewer_texts_is_named(
    folder: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    evaluate(pico_llama, pico_tokenizer, suite="membership", data=folder, out=folder / "few", limit=4, quiet=True)
    suite = Membership(retain_scores=folder / "few")
    score = evaluate(pico_llama, pico_tokenizer, suite=suite, data=folder, quiet=True).get("suite", "privleak")
    assert score is not None
    assert score.unscored is not None
    assert "lack 6 of 10" in score.unscored


def test_a_missing_file_and_a_holdout_that_was_trained_on_are_sentences(folder: Path) -> None:
    with pytest.raises(ExpungeError, match="holdout=FILE"):
        Membership(holdout="others.jsonl").build(folder)
    with pytest.raises(ExpungeError, match="10 of 10 holdout examples are also forget"):
        Membership(holdout="forget.jsonl").build(folder)


def test_no_model_is_its_own_reference(
    folder: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    evaluate(pico_llama, pico_tokenizer, suite="membership", data=folder, out=folder / "own", fingerprint="abc", quiet=True)
    for option in ("retain_scores", "reference_scores"):
        suite = Membership(**{option: folder / "own"})  # type: ignore[arg-type]
        with pytest.raises(ExpungeError, match=rf"given as {option} is of this very model"):
            evaluate(pico_llama, pico_tokenizer, suite=suite, data=folder, fingerprint="abc", quiet=True)
        evaluate(pico_llama, pico_tokenizer, suite=suite, data=folder, fingerprint="def", quiet=True)
