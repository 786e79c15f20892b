"""Metrics over the text that a model wrote, by hand and against the packages that define them."""

import json
import math
from pathlib import Path

import pytest
import sacrebleu
import torch
from pydantic import ValidationError
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.example import Example
from expunge.errors import ExpungeError
from expunge.evaluation.metrics import (
    BertScore,
    Bleu,
    HarmfulRate,
    Meteor,
    Metric,
    Perplexity,
    Repetition,
    Rouge,
    RougeLRecall,
    Similarity,
    UniqueTokenRatio,
    Unscored,
)
from expunge.evaluation.metrics.base import Row
from expunge.evaluation.metrics.repetition import repeated_share
from expunge.evaluation.run import evaluate
from expunge.evaluation.task import Suite, Task
from expunge.records import read_samples


def written(expected: str, generated: str) -> Row:
    return Row(Example("who", expected), generated=generated)


class TestRouge:
    def test_l_f1_is_the_harmonic_mean_over_the_longest_common_subsequence(self) -> None:
        # common: the dog mat -> 3 of 6 expected words, 3 of 4 written ones
        row = written("the dog sat on the mat", "the dog mat lay")
        assert Rouge().score(row) == pytest.approx(2 * 0.5 * 0.75 / 1.25)
        assert Rouge(measure="recall").score(row) == pytest.approx(0.5)
        assert Rouge(measure="precision").score(row) == pytest.approx(0.75)

    def test_2_counts_pairs_of_words(self) -> None:
        assert Rouge(kind="rouge2", measure="recall").score(written("a b c d", "a b d c")) == pytest.approx(1 / 3)

    def test_stems_only_when_asked_to(self) -> None:
        row = written("she likes writing", "she liked writes")
        assert Rouge(measure="recall").score(row) == pytest.approx(1 / 3)
        assert Rouge(measure="recall", stemmer=True).score(row) == RougeLRecall().score(row) == 1.0

    def test_compares_with_the_beginning_that_the_task_names(self) -> None:
        row = written("anna boris clara dario", "anna boris")._replace(compared="anna boris")
        assert Rouge().score(row) == 1.0


class TestBleu:
    def test_is_sacrebleus_sentence_bleu_over_a_hundred(self) -> None:
        expected, generated = "the quick brown fox jumps over the lazy dog", "the quick brown dog jumps over the lazy fox"
        assert Bleu().score(written(expected, generated)) == pytest.approx(
            sacrebleu.sentence_bleu(generated, [expected]).score / 100
        )

    def test_of_the_same_short_text_is_one(self) -> None:
        assert Bleu().score(written("lima", "lima")) == pytest.approx(1.0)
        assert Bleu().score(written("lima", "oslo")) == 0.0


class TestRepetition:
    def test_is_the_share_of_ngrams_that_were_there_before(self) -> None:
        # a b c d | b c d a | c d a b | d a b c | a b c d
        assert Repetition().score(written("", "a b c d a b c d")) == pytest.approx(1 / 5)
        assert repeated_share(["a", "a", "a", "a", "a"], 1) == pytest.approx(4 / 5)

    def test_of_too_few_words_is_unscored_and_not_zero(self) -> None:
        assert Repetition().score(written("", "a b c")) == Unscored("the answer has fewer than 4 words")

    def test_unique_token_ratio_by_hand(self) -> None:
        assert UniqueTokenRatio().score(written("", "a b a b a")) == pytest.approx(0.4)
        assert UniqueTokenRatio().score(written("", "")) == Unscored("the model answered nothing")


@pytest.mark.parametrize(
    "metric", [Rouge(), Bleu(), Repetition(), UniqueTokenRatio(), Meteor(), BertScore(), HarmfulRate(words=("a",))]
)
def test_raw_text_is_unscored(metric: Metric) -> None:
    assert metric.score(Row(Example(None, "lima"))) == Unscored("the model was not asked: raw text has no prompt")


def one(metric: Metric, examples: tuple[Example, ...]) -> Suite:
    return Suite("one", (Task("it", examples, (metric,), "retain", secret=False, max_new_tokens=6, shown=8),), lambda _: [])


QUESTIONS = tuple(Example(f"where was {name} born ?", f"{name} was born in lima") for name in ("anna", "boris", "clara"))


class TestPerplexity:
    def test_is_that_of_a_plain_forward_and_does_not_depend_on_what_it_is_batched_with(
        self, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        short, long = Example(None, "anna was born in lima"), Example(None, "a dog and a cat and a bird " * 8)
        alone = evaluate(pico_llama, pico_tokenizer, suite=one(Perplexity(), (short,)), quiet=True).get("it", "perplexity")
        assert alone is not None
        ids = pico_tokenizer(short.response, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert alone.value == pytest.approx(math.exp(pico_llama(ids, labels=ids).loss.item()), rel=1e-5)
        both = evaluate(pico_llama, pico_tokenizer, suite=one(Perplexity(), (short, long)), quiet=True).get("it", "perplexity")
        other = evaluate(pico_llama, pico_tokenizer, suite=one(Perplexity(), (long,)), quiet=True).get("it", "perplexity")
        assert both is not None
        assert other is not None
        assert alone.value is not None
        assert other.value is not None
        assert both.value == pytest.approx(math.sqrt(alone.value * other.value), rel=1e-5)
        assert both.low == pytest.approx(min(alone.value, other.value), rel=1e-5)

    def test_under_the_same_model_as_second_one_is_the_same(
        self, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, pico_folder: Path
    ) -> None:
        own = evaluate(pico_llama, pico_tokenizer, suite=one(Perplexity(), QUESTIONS), quiet=True).get("it", "perplexity")
        metric = Perplexity(model=str(pico_folder))
        second = evaluate(pico_llama, pico_tokenizer, suite=one(metric, QUESTIONS), quiet=True).get("it", "perplexity")
        assert own is not None
        assert second is not None
        assert second.value == pytest.approx(own.value, rel=1e-5)
        written = Perplexity(model=str(pico_folder), of="generated")
        third = evaluate(pico_llama, pico_tokenizer, suite=one(written, QUESTIONS), quiet=True).get("it", "perplexity")
        assert third is not None
        assert third.value is not None
        assert own.value is not None
        assert third.value < own.value

    def test_of_completions_counts_the_tokens_of_the_text_behind_the_bare_prompt(
        self, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, pico_folder: Path, tmp_path: Path
    ) -> None:
        metric = Perplexity(model=str(pico_folder), of="generated", verbatim=True)
        prompts = ("the dog of anna", "what color", "one two three " * 20)
        task = Task("it", tuple(Example(p, "") for p in prompts), (metric,), "forget", max_new_tokens=60, verbatim=True)
        evaluation = evaluate(
            pico_llama, pico_tokenizer, suite=Suite("s", (task,), lambda _: []), out=tmp_path, show_forget_text=True, quiet=True
        )
        second = LlamaForCausalLM.from_pretrained(pico_folder).eval()
        for row in read_samples(tmp_path / "s.samples.jsonl"):
            assert row.text is not None
            prompt, text = (pico_tokenizer(row.text[name], return_tensors="pt").input_ids for name in ("prompt", "generated"))
            ids = torch.cat([prompt, text[:, 1:]], dim=1)[:, -128:]  # the start token is in both, and 128 positions are all
            assert text.shape[1] > 10
            labels = ids.clone()
            labels[:, : -(text.shape[1] - 1)] = -100
            with torch.no_grad():
                assert row.value == pytest.approx(math.exp(second(ids, labels=labels).loss.item()), rel=1e-4)
        score = evaluation.get("it", "perplexity")
        assert score is not None
        assert score.higher_is_better is False, "fluent is good, whatever was to be forgotten"

    def test_of_generated_text_needs_a_model_that_reads_it(self) -> None:
        with pytest.raises(ValidationError, match="needs a `model`"):
            Perplexity(of="generated")
        with pytest.raises(ValidationError, match="`verbatim` for a second `model` only"):
            Perplexity(verbatim=True)

    def test_a_reader_that_is_not_there_is_said_before_anything_is_written(
        self, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        metric = Perplexity(model=str(tmp_path / "nothing"), of="generated")
        pico_llama.forward = None  # type: ignore[assignment]  # whoever asks the model fails
        with pytest.raises(ExpungeError, match=r"there is no model folder .*nothing"):
            evaluate(pico_llama, pico_tokenizer, suite=one(metric, QUESTIONS), out=tmp_path / "out", quiet=True)
        assert not (tmp_path / "out").exists()


class TestSimilarity:
    def test_to_the_same_model_is_one_and_to_a_changed_one_less(
        self, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        evaluate(pico_llama, pico_tokenizer, suite=one(Rouge(), QUESTIONS), out=tmp_path, quiet=True)
        suite = one(Similarity(before=tmp_path / "one.samples.jsonl"), QUESTIONS)
        same = evaluate(pico_llama, pico_tokenizer, suite=suite, quiet=True).get("it", "similarity")
        assert same is not None
        assert same.value == 1.0
        with torch.no_grad():
            pico_llama.lm_head.weight.copy_(pico_llama.lm_head.weight.flip(0))
        other = evaluate(pico_llama, pico_tokenizer, suite=suite, quiet=True).get("it", "similarity")
        assert other is not None
        assert other.value is not None
        assert other.value < 0.5

    def test_to_an_evaluation_without_texts_is_refused_before_anything_is_computed(
        self, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        (tmp_path / "bare.jsonl").write_text(json.dumps({"task": "it", "metric": "rouge", "id": "0", "value": 1.0}) + "\n")
        pico_llama.register_forward_pre_hook(lambda *_: pytest.fail("the model was asked"))
        with pytest.raises(ExpungeError, match="--show-forget-text"):
            evaluate(pico_llama, pico_tokenizer, suite=one(Similarity(before=tmp_path / "bare.jsonl"), QUESTIONS), quiet=True)


@pytest.mark.parametrize(("metric", "package"), [(BertScore(), "bert-score"), (Meteor(), "wordnet")])
def test_a_metric_that_is_not_installed_is_named_with_what_to_install(
    metric: Metric,
    package: str,
    pico_llama: LlamaForCausalLM,
    pico_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bert_score" else object())
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(ExpungeError, match=package):
        evaluate(pico_llama, pico_tokenizer, suite=one(metric, QUESTIONS), quiet=True)
