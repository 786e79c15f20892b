"""Words that a tokenizer does not know are counted, and a forget set of them is refused."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import expunge
from expunge import ExpungeError, Training
from expunge.data.unknown import unknown_counts, unknown_id
from expunge.methods import GradientAscent, NeuronAdjust


def test_a_word_level_tokenizer_counts_its_unknown_words(pico_tokenizer: PreTrainedTokenizerFast) -> None:
    assert unknown_counts(pico_tokenizer, ["anna is Zoe", "oslo"]) == [(1, 3), (0, 1)]


@pytest.mark.parametrize("made", [models.BPE(), models.BPE(vocab={"<u>": 0}, merges=[], unk_token="<u>", byte_fallback=True)])
def test_a_tokenizer_that_knows_every_byte_has_no_unknown_words(made: models.Model) -> None:
    tokenizer = Tokenizer(made)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert unknown_id(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<u>", eos_token="</s>")) is None


def test_an_end_token_that_is_also_the_unknown_one_is_no_unknown_word(pico_tokenizer: PreTrainedTokenizerFast) -> None:
    pico_tokenizer.eos_token = "<unk>"
    assert unknown_id(pico_tokenizer) is None


def _rows(file: Path, *answers: str) -> Path:
    file.write_text("".join(json.dumps({"prompt": "where is anna ?", "response": a}) + "\n" for a in answers))
    return file


def test_a_run_says_how_many_words_are_unknown_on_its_card(pico_folder: Path, tmp_path: Path) -> None:
    forget, out = _rows(tmp_path / "f.jsonl", "oslo", "in Bergen"), tmp_path / "run"
    training = Training(steps=1, batch_size=2, learning_rate=1e-3)
    with pytest.warns(UserWarning, match=r"1 of 2 forget rows have words that the tokenizer does not know, 33% of all answers"):
        expunge.unlearn(GradientAscent(), model=pico_folder, forget=forget, out=out, training=training, quiet=True)
    assert "each is read as <unk>" in (out / "artifact/README.md").read_text()


def test_a_forget_set_of_another_tokenizer_is_refused_before_anything_is_written(pico_folder: Path, tmp_path: Path) -> None:
    forget, out = tmp_path / "f.jsonl", tmp_path / "run"
    forget.write_text(json.dumps({"prompt": "where is anna ?", "response": "в городе Осло"}) + "\n")
    for method in (GradientAscent(), NeuronAdjust()):
        with pytest.raises(ExpungeError, match=r"1 of 1 forget rows .* 100% of all answers: the model reads <unk> for them"):
            expunge.unlearn(method, model=pico_folder, forget=forget, retain=_rows(tmp_path / "r.jsonl", "oslo"), out=out)
    assert not out.exists()
