"""Where an answer ends and where its text begins: end tokens of every configuration, whole characters, nobody's stop strings."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.asking import ask
from expunge.data.encode import Encoder
from expunge.data.example import Example
from expunge.data.format import default_format
from expunge.evaluation.alternates import draw_answers
from expunge.evaluation.generate import text_of
from expunge.evaluation.metrics import Containment, ExactMatch, ExactMemorization
from expunge.evaluation.run import evaluate
from expunge.evaluation.side_by_side import said
from expunge.evaluation.suites import LmEval
from expunge.evaluation.task import Suite, Task
from expunge.methods.training.base import Asking
from expunge.records import read_samples

TASK = """
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: paris
generation_kwargs: {{until: ["#"], do_sample: false, max_gen_toks: 6}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def following(model: LlamaForCausalLM, ids: Sequence[int]) -> LlamaForCausalLM:
    """A model that reads only the last token, and after the i-th of `ids` (all different) writes the one after it."""
    assert len(set(ids)) == len(ids) <= 32
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        for place, (now, after) in enumerate(pairwise(ids)):
            model.model.embed_tokens.weight[now, place] = 1.0
            model.lm_head.weight[after, place] = 1.0
    return model


@pytest.fixture(params=["generation_config", "config"])
def talker(
    request: pytest.FixtureRequest, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> LlamaForCausalLM:
    """After `?` it says `paris`, then an end token that only a list in one of its configurations names, and then goes on. The
    authors' generation config also has a stop string, a penalty and sampling."""
    words = pico_tokenizer.convert_tokens_to_ids(["?", "paris", ".", "oslo", "lima"])
    model = following(pico_llama, words)
    with torch.no_grad():  # the word that ends the plain template is not in the vocabulary
        model.model.embed_tokens.weight[pico_tokenizer.unk_token_id] = model.model.embed_tokens.weight[words[0]]
    place = model.generation_config if request.param == "generation_config" else model.config
    place.eos_token_id = [2, words[2]]
    model.generation_config.stop_strings = ["par"]
    model.generation_config.repetition_penalty = 1.5
    model.generation_config.do_sample = True
    return model


def generated(folder: Path, suite: str) -> list[str]:
    return [row.text["generated"] for row in read_samples(folder / f"{suite}.samples.jsonl") if row.text]


@pytest.mark.parametrize("verbatim", [True, False])
def test_an_answer_ends_at_any_end_token_of_the_configurations(
    talker: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, verbatim: bool
) -> None:
    task = Task("t", (Example("where ?", "paris"),), (ExactMatch(),), "retain", max_new_tokens=6, verbatim=verbatim)
    suite = Suite("trial", (task,), lambda results: [])
    found = evaluate(talker, pico_tokenizer, suite=suite, out=tmp_path / "out", show_forget_text=True, quiet=True)
    score = found.get("t", "exact_match")
    assert score is not None
    assert score.value == 1.0
    assert [text.strip() for text in generated(tmp_path / "out", "trial")] == ["paris"]


def test_the_answers_of_lm_evals_tasks_end_there_too(
    talker: LlamaForCausalLM,
    pico_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"question": text}) + "\n" for text in ("where ?", "in which city is anna ?")))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "written.yaml").write_text(TASK.format(data=data))
    before = talker.generation_config
    found = evaluate(
        talker, pico_tokenizer, suite=LmEval(), data=tmp_path / "tasks", out=tmp_path / "out", show_forget_text=True, quiet=True
    )
    score = found.get("written", "exact_match")
    assert score is not None
    assert score.value == 1.0
    assert talker.generation_config is before


def test_so_do_answers_that_become_data(
    talker: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Of questions to forget, of alternate answers, and of models side by side."""
    asked = ask(talker, pico_tokenizer, ["where ?"], tmp_path / "request", with_retain=False)
    assert json.loads(asked.forget.read_text().splitlines()[0])["response"] == "paris"
    encoder = Encoder(pico_tokenizer, default_format(pico_tokenizer))
    with torch.no_grad():
        talker.lm_head.weight *= 100  # so sure that sampling has no choice
    (answers,) = draw_answers(talker, encoder, ["where ?"], Asking(lambda example: "", 2, 1.0, 6, ()), 0)
    assert answers == ("paris", "paris")
    talker.generation_config.do_sample = True
    talker.save_pretrained(tmp_path / "model")
    pico_tokenizer.save_pretrained(tmp_path / "model")
    (side,) = said(tmp_path / "model", [Example("where ?", "")], draw=None, max_new_tokens=6)
    assert side.answer.strip() == "paris"


@pytest.fixture
def byte_fallback() -> PreTrainedTokenizerFast:
    """Knows no character but those of its bytes, as SentencePiece models do in scripts that they have not learned."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(("tokens", "expected"), [(8, "나ম"), (6, "나ম"), (5, "나"), (4, "나"), (3, "나"), (2, "")])
def test_answers_in_scripts_of_bytes_are_whole_characters(
    byte_llama: LlamaForCausalLM, byte_fallback: PreTrainedTokenizerFast, tmp_path: Path, tokens: int, expected: str
) -> None:
    """Wherever the prompt's last tokens begin, and whatever character the limit of tokens cuts."""
    model = following(byte_llama, [3 + byte for byte in (0x80, *"나ম".encode())] + [2])
    prompts = ("가", "x가", "xx가가", "가가가가가", "ক가가가가가가가가")
    examples = tuple(Example(prompt, "나ম") for prompt in prompts)
    metrics = (Containment(), ExactMemorization())
    task = Task("t", examples, metrics, "retain", max_new_tokens=tokens, verbatim=True)
    suite = Suite("trial", (task,), lambda results: [])
    found = evaluate(model, byte_fallback, suite=suite, out=tmp_path / "out", show_forget_text=True, quiet=True)
    assert generated(tmp_path / "out", "trial") == [expected] * len(prompts)
    memorized, contained = found.get("t", "exact_memorization"), found.get("t", "containment")
    assert memorized is not None
    assert contained is not None
    assert memorized.value == 1.0
    assert contained.value == float(tokens >= 6)


def test_bytes_that_are_no_character_stay_visible(byte_fallback: PreTrainedTokenizerFast) -> None:
    ids: Callable[[bytes], tuple[int, ...]] = lambda raw: tuple(3 + byte for byte in raw)  # noqa: E731
    assert set(text_of(byte_fallback, ids(b"ab\xff\xff\xff\xff"))) == {"\ufffd"}
    assert text_of(byte_fallback, ids("나".encode())[:1]) == "\ufffd"
    assert text_of(byte_fallback, ()) == ""


def test_blanks_before_punctuation_are_the_models_own() -> None:
    """Llama 3's tokenizer_config.json, among many, has them taken out of what is decoded."""
    vocabulary = {"<unk>": 0, "[": 1, "1": 2, ",": 3, "2": 4, "]": 5, "do": 6, "n't": 7, "</s>": 8}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        eos_token="</s>",
        clean_up_tokenization_spaces=True,
    )
    assert text_of(tokenizer, (1, 2, 3, 4, 5, 6, 7, 8)) == "[ 1 , 2 ] do n't"
