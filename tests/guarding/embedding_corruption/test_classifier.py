"""Gates by a text classifier: fine-tuned from an encoder, or given; and what disguises do to it."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaForCausalLM, PreTrainedTokenizerFast

from expunge import ExpungeError
from expunge.data.encode import Encoder, Format
from expunge.data.example import Example, Request
from expunge.guarding import life
from expunge.guarding.embedding_corruption.classifier import ClassifierGate, fine_tune, forget_label
from expunge.guarding.embedding_corruption.gate import Scores, TextGate, requests
from expunge.guarding.embedding_corruption.prompt_classes import disguises, errors, statements, written_as
from expunge.guarding.embedding_corruption.training_set import TrainingSet
from expunge.methods import EmbeddingCorruption

PEOPLE, NUMBERS = ["anna", "boris", "clara", "dario", "elena"], ["one", "two", "three", "four", "five"]
FORGET = [f"where was {name} born ?" for name in PEOPLE] + [f"what is the job of {name} ?" for name in PEOPLE]
RETAIN = [f"{a} plus {b} is" for a in NUMBERS for b in NUMBERS]
UNKNOWN = ["qq", "qq ww ee", "where qq ww ee ?", "qq ww ee rr tt yy uu ii", "what is the qq of ww ?", "qq ww is"]
"""Words that the tokenizer does not know, which a classifier takes for harmless."""
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def encoder_folder(folder: Path, tokenizer: PreTrainedTokenizerFast, **config: object) -> Path:
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **SIZES, **dropout, **config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(pico_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(pico_tokenizer, Format(template="question: {prompt} answer: {response}"))


@pytest.fixture
def learned(tmp_path: Path, pico_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A classifier that knows the two kinds of prompts; forget is its label 0, which only its config says."""
    folder = encoder_folder(tmp_path / "learned", pico_tokenizer, id2label={0: "LABEL_1", 1: "LABEL_0"})
    model = BertForSequenceClassification.from_pretrained(folder).train()
    inputs = pico_tokenizer([*FORGET, *RETAIN, *UNKNOWN], padding=True, return_tensors="pt")
    labels = torch.tensor([0] * len(FORGET) + [1] * len([*RETAIN, *UNKNOWN]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits, labels
        ).backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def test_an_encoder_is_fine_tuned_by_the_seed_and_the_order_of_classes_is_right(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    base = encoder_folder(tmp_path / "base", pico_tokenizer)
    for name in ("one", "two"):
        fine_tune(str(base), TrainingSet.of(FORGET, RETAIN), tmp_path / name, epochs=40, seed=3)
    one, two = ClassifierGate(tmp_path / "one"), ClassifierGate(tmp_path / "two")
    forget, retain = one.probabilities(FORGET), one.probabilities(RETAIN)
    assert forget == two.probabilities(FORGET)
    assert sum(forget) / len(forget) > sum(retain) / len(retain)


def test_the_label_that_means_forget_is_read_from_the_config() -> None:
    assert forget_label({0: "retain", 1: "forget"}, "x") == 1
    assert forget_label({0: "Forget", 1: "keep"}, "x") == 0
    assert forget_label({0: "LABEL_0", 1: "LABEL_1"}, "x") == 1
    for names in ({0: "a", 1: "b"}, {0: "forget"}, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}):
        with pytest.raises(ExpungeError, match="one of them forget or LABEL_1"):
            forget_label(names, "x")


def test_a_given_classifier_is_kept_inside_the_guard(
    learned: Path, tmp_path: Path, pico_llama: LlamaForCausalLM, encoder: Encoder
) -> None:
    method = EmbeddingCorruption(
        gate="classifier", gate_model=str(learned), threshold="fixed", threshold_value=0.9, tune="nothing", strength=5.0
    )
    request = Request(tuple(Example(p, "in lima .") for p in FORGET), tuple(Example(p, "nine .") for p in RETAIN))
    for name in ("assets", "guard"):
        (tmp_path / name).mkdir()
    life.save(tmp_path / "guard", life.fit(method, pico_llama, request, encoder, assets=tmp_path / "assets"), encoder)
    state = life.read(tmp_path / "guard")
    judge = method.judge(pico_llama, state, encoder)
    flagged = [judge.decision(ids).flagged for ids in encoder.encode_prompts([*FORGET, *RETAIN])]
    assert flagged == [True] * len(FORGET) + [False] * len(RETAIN)
    with pytest.raises(ExpungeError, match="no text classifier"):
        ClassifierGate(tmp_path / "guard")


def test_disguises_pass_without_canonical_readings_and_hardly_with_them(learned: Path, encoder: Encoder) -> None:
    """A classifier of words sees none of the words of most disguises; the text gate squeezes letters together itself."""
    share = {}
    for name, gate in (("encoder", ClassifierGate(learned)), ("text", TextGate(TextGate.fit(TrainingSet.of(FORGET, RETAIN))))):
        scores = Scores(gate, encoder)
        line = max(scores.of(text) for text in RETAIN)
        whole = errors(lambda prompt, s=scores, at=line: s.of(prompt) > at, FORGET[:3], RETAIN[:3])  # type: ignore[misc]
        bare = errors(
            lambda prompt, g=gate, at=line: max(g.probabilities(requests(prompt, encoder) or [prompt])) > at,  # type: ignore[misc]
            FORGET[:3], (),
        )  # fmt: skip
        assert whole["as trained"] == (0.0, 0.0)
        assert bare["as trained"].flagged is None
        share[name] = (bare["disguised"].missed or 0.0, whole["disguised"].missed or 0.0)
    assert share["encoder"][0] > 0.3, share
    assert share["encoder"][1] < 0.3, share
    assert share["text"][0] > 0.2, share
    assert share["text"][1] <= 0.05, share


def test_every_class_is_written_and_differs_from_the_prompt() -> None:
    prompt = "Where was Anna Lind born in Oslo?"
    found = written_as(prompt) | disguises(prompt)
    assert found.pop("as trained") == prompt
    assert len(set(found.values())) == len(found) == 4 + 14
    assert found["keyword only"] == "Anna Lind Oslo"
    assert written_as("two plus three")["keyword only"].split()[0] == "three"
    rates = errors(lambda text: "Anna" in text, [prompt], ["What is red?"], rephrased={"forget": ["Who is Bo?"]})
    assert rates["rephrased"] == (1.0, None)
    assert rates["as trained"] == (0.0, 0.0)


def test_statements_are_classes_of_their_own_plain_and_in_each_disguise() -> None:
    begun = {
        "forget": statements([Example("Where was Anna born?", "Anna was born in Oslo."), Example("Who?", "Anna")]),
        "retain": statements([Example("What is red?", "Blood is red.")]),
    }
    assert begun == {"forget": ["Anna was born in"], "retain": ["Blood is"]}
    rates = errors(lambda text: "Anna" in text, ["Where?"], ["What?"], begun=begun)  # type: ignore[arg-type]
    assert rates["statement"] == (0.0, 0.0)
    assert rates["statement, disguised: long preamble"] == (0.0, 0.0)
    assert rates["statement, disguised: dots"] == (1.0, 0.0)
    assert 0 < (rates["statement, disguised"].missed or 0) < 1
