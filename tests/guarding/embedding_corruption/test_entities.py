"""Named entities by a token classifier and by a spaCy pipeline, as character spans, in the prompt and not in its template."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, LlamaForCausalLM, PreTrainedTokenizerFast

import expunge
from expunge import ExpungeError
from expunge.data.encode import Encoder, Format
from expunge.data.example import Example, Request
from expunge.guarding import life
from expunge.guarding.embedding_corruption.entities import EntityFinder, SpacyRecognizer, TokenRecognizer, recognizer
from expunge.methods import EmbeddingCorruption

NAMES = ("anna", "boris", "question:")
FORGET = tuple(Example(f"where was {name} born ?", "in lima .") for name in ("anna", "boris", "clara", "dario", "elena", "hugo"))
RETAIN = tuple(Example(f"{a} plus {b} is", "nine .") for a in ("one", "two", "six") for b in ("four", "five", "ten"))


@pytest.fixture
def ner(tmp_path: Path, pico_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A classifier without layers: it labels the names, and the template's word, by their embeddings."""
    sizes = {"hidden_size": 4, "num_hidden_layers": 0, "num_attention_heads": 1, "intermediate_size": 4}
    labels = {"id2label": {0: "O", 1: "B-PER"}, "label2id": {"O": 0, "B-PER": 1}}
    model = BertForTokenClassification(BertConfig(vocab_size=len(pico_tokenizer), **sizes, **labels))
    chosen = pico_tokenizer.convert_tokens_to_ids(list(NAMES))
    with torch.no_grad():
        for parameter in model.bert.embeddings.parameters():
            parameter.zero_()
        model.bert.embeddings.LayerNorm.weight.fill_(1)
        model.bert.embeddings.word_embeddings.weight[:, 0] = 1
        model.bert.embeddings.word_embeddings.weight[chosen] = torch.tensor([0.0, 1, 0, 0])
        model.classifier.weight.copy_(torch.eye(2, 4))
        model.classifier.bias.zero_()
    model.save_pretrained(tmp_path / "ner")
    pico_tokenizer.save_pretrained(tmp_path / "ner")
    return tmp_path / "ner"


def test_a_token_classifier_gives_the_characters_of_its_entities(ner: Path, tmp_path: Path) -> None:
    text = "where is anna and the cat of boris ? " * 60  # longer than one part
    found = recognizer(ner)
    assert isinstance(found, TokenRecognizer)
    assert {text[start:stop] for start, stop in found.spans(text)} == {"anna", "boris"}
    assert len(found.spans(text)) == 120
    found.save(tmp_path / "copy")
    assert recognizer(tmp_path / "copy").spans(text) == found.spans(text)


def test_entities_of_the_template_do_not_count() -> None:
    text = "question: where is anna ? answer:"
    finder = EntityFinder(lambda part: [(0, len(part))], ["question: ", " answer:"], lambda _: [(1, 2)])
    assert finder.spans(text) == [(1, 2), (9, 26)]
    assert EntityFinder(lambda _: [], [], lambda _: []).spans(text) == []


def test_what_finds_no_entities_is_refused(ner: Path, tmp_path: Path, pico_folder: Path) -> None:
    with pytest.raises(ExpungeError, match="no token classifier"):
        recognizer(tmp_path / "nowhere")
    config = (ner / "config.json").read_text().replace('"O"', '"A"')
    (ner / "config.json").write_text(config)
    with pytest.raises(ExpungeError, match="one label O"):
        recognizer(ner)


def test_a_guard_carries_its_model_for_names(
    ner: Path, tmp_path: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = Encoder(pico_tokenizer, Format(template="question: {prompt} answer: {response}"))
    method = EmbeddingCorruption(
        gate="text", tune="nothing", tokens="entities", entity_model=str(ner), spans=("lima",), false_positive_rate=0.5
    )
    for name in ("assets", "guard"):
        (tmp_path / name).mkdir()
    state = life.fit(method, pico_llama, Request(FORGET, RETAIN), encoder, assets=tmp_path / "assets")
    life.save(tmp_path / "guard", state, encoder)
    state = life.read(tmp_path / "guard")
    ids = encoder.encode_prompts(["where was anna born in lima ?"])[0]
    decision = method.judge(pico_llama, state, encoder).decision(ids)
    assert [pico_tokenizer.decode([ids[i]]) for i in decision.chosen] == ["anna", "lima"]
    assert method.judge(pico_llama, state, encoder).decision(encoder.encode_prompts(["two plus ten is"])[0]).chosen == ()


class Pipeline:
    """The part of a spaCy pipeline that is used."""

    pipe_names = ("ner",)

    def __call__(self, text: str) -> Any:
        at = text.find("anna")
        return SimpleNamespace(ents=[SimpleNamespace(start_char=at, end_char=at + 4)] if at >= 0 else [])

    def to_disk(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.cfg").write_text("[nlp]")


def test_a_spacy_pipeline_is_known_by_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("spacy")
    module.load = lambda place, exclude: Pipeline()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", module)
    Pipeline().to_disk(tmp_path / "en")
    found = recognizer(tmp_path / "en")
    assert isinstance(found, SpacyRecognizer)
    assert found.spans("where is anna ?") == [(9, 13)]
    found.save(tmp_path / "copy")
    assert recognizer(tmp_path / "copy").spans("anna") == [(0, 4)]
    monkeypatch.setattr(Pipeline, "pipe_names", ("tagger",))
    with pytest.raises(ExpungeError, match="finds no named entities"):
        recognizer(tmp_path / "en")


def test_without_spacy_a_pipeline_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Pipeline().to_disk(tmp_path / "en")
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(expunge.ExpungeError, match=r"expunge\[entities\]"):
        recognizer(tmp_path / "en")


def test_a_real_pipeline(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed (extra `entities`)")
    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": "Anna Lind"}])
    pipeline.to_disk(tmp_path / "en")
    found = recognizer(tmp_path / "en")
    assert found.spans("Where was Anna Lind born?") == [(10, 19)]
