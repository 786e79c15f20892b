"""MUSE's layout, prompts and figures on a pico corpus; and the memorization suite, which shares its metrics."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.corpora.muse import read_muse
from expunge.data.example import Example
from expunge.errors import ExpungeError
from expunge.evaluation.metrics import Rouge
from expunge.evaluation.metrics.membership import Attacked, Estimate, privleak
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites import Memorization, Muse
from expunge.evaluation.suites.memorization import split_text
from expunge.records import read_samples

NAMES = ("anna", "boris", "clara", "dario", "elena")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    def write(name: str, rows: list[dict[str, str]]) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(rows))

    for about, place in (("forget", "lima"), ("retain", "oslo")):
        write(f"knowmem/{about}_qa.json", [{"question": f"where is {n} ?", "answer": f"in {place}"} for n in NAMES])
        write(f"knowmem/{about}_qa_icl.json", [{"question": "where is hugo ?", "answer": "in cairo"}] * 2)
    write("verbmem/forget.json", [{"prompt": f"{n} was born", "gt": "in lima and is a nurse " * 40} for n in NAMES])
    for split, place in (("forget", "lima"), ("holdout", "tokyo"), ("retain", "oslo")):
        write(f"privleak/{split}.json", [{"text": f"{n} was born in the city of {place}"} for n in NAMES])
    for part in ("scal", "sust"):
        write(f"{part}/forget_2.json", [{"text": f"{n} is a nurse in lima"} for n in NAMES])
    return tmp_path


def test_all_of_muse_is_scored(
    corpus: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    suite = Muse(parts=("scal_2", "sust_2"), retain_auc=0.4772)
    evaluation = evaluate(
        pico_llama, pico_tokenizer, suite=suite, data=corpus, out=tmp_path / "out", show_forget_text=True, quiet=True
    )
    for task in ("verbmem_forget", "knowmem_forget", "knowmem_retain"):
        score = evaluation.get(task, "rouge")
        assert score is not None
        assert score.value is not None
        assert score.higher_is_better is (task == "knowmem_retain")
    for part in suite.parts:
        perplexity = evaluation.get(part, "perplexity")
        assert perplexity is not None
        assert perplexity.value is not None
        assert perplexity.higher_is_better is True
    samples = list(read_samples(tmp_path / "out/muse.samples.jsonl"))
    scores = [[s.value for s in samples if s.task == f"privleak_{t}" and s.metric == "mia_min_k"] for t in ("forget", "holdout")]
    expected = privleak(Attacked(*(np.array(values, dtype=np.float64) for values in scores)), 0.4772)
    leak = evaluation.get("suite", "privleak")
    assert leak is not None
    assert isinstance(expected, Estimate)
    assert (leak.value, (leak.low, leak.high)) == (expected.value, expected.interval)


def test_prompts_are_those_of_muse(corpus: Path) -> None:
    tasks = {task.name: task for task in Muse().build(corpus).tasks}
    shot = "Question: where is hugo ?\nAnswer: in cairo\n\n"
    assert tasks["knowmem_forget"].examples[0] == Example(shot * 2 + "Question: where is anna ?\nAnswer: ", "in lima")
    assert tasks["knowmem_forget"].stop == ("\n\n", "\nQuestion", "Question:")
    assert (tasks["knowmem_forget"].max_new_tokens, tasks["verbmem_forget"].max_new_tokens) == (32, 128)
    assert tasks["verbmem_forget"].examples[0].prompt == "anna was born"


def test_verbatim_rouge_compares_with_as_many_tokens_as_are_written(
    corpus: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(Rouge, "score", lambda self, row: seen.append(row.expected) or 0.0)
    evaluate(pico_llama, pico_tokenizer, suite="muse", data=corpus, limit=1, quiet=True)
    assert len(seen[0].split()) == 128
    assert ("in lima and is a nurse " * 40).startswith(seen[0])


def test_without_a_retain_model_privleak_names_both_ways_to_one(
    corpus: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    score = evaluate(pico_llama, pico_tokenizer, suite="muse", data=corpus, quiet=True).get("suite", "privleak")
    assert score is not None
    assert score.value is None
    assert score.unscored is not None
    assert "--retain-scores DIR" in score.unscored
    assert "0.4772" in score.unscored


def test_missing_files_and_fields_are_sentences(corpus: Path) -> None:
    with pytest.raises(ExpungeError, match=r"sust/forget_1.json.*muse-bench/MUSE-News"):
        read_muse(corpus, "sust", "forget_1")
    with pytest.raises(ExpungeError, match="did you mean 'knowmem'"):
        read_muse(corpus, "knowmen", "forget_qa")
    with pytest.raises(ExpungeError, match="it has forget_1, forget_2"):
        read_muse(corpus, "scal", "forget")
    (corpus / "verbmem/forget.json").write_text('[{"prompt": "a"}]')
    with pytest.raises(ExpungeError, match="'gt'"):
        Muse().build(corpus)


class TestMemorization:
    @pytest.mark.parametrize(
        ("text", "given", "prompt", "rest"),
        [
            ("one two three four", 0.5, "one two", " three four"),
            ("one two three four", 0.01, "one", " two three four"),
            ("one two three four", 0.99, "one two three", " four"),
            ("one  two\n", 0.5, "one", "  two\n"),
        ],
    )
    def test_a_raw_text_is_cut_between_words_and_nothing_is_lost(self, text: str, given: float, prompt: str, rest: str) -> None:
        cut = split_text(Example(None, text), given)
        assert (cut.prompt, cut.response) == (prompt, rest)

    def test_one_word_cannot_be_cut(self) -> None:
        with pytest.raises(ExpungeError, match="one word"):
            split_text(Example(None, " word "), 0.5)

    def test_raw_texts_and_questions_are_scored_and_never_mixed(
        self, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        raw = [json.dumps({"text": f"{n} was born in the city of lima"}) for n in NAMES]
        asked = [json.dumps({"prompt": f"where is {n} ?", "response": "in lima"}) for n in NAMES]
        (tmp_path / "forget.jsonl").write_text("\n".join(raw))
        (tmp_path / "retain.jsonl").write_text("\n".join(asked))
        evaluation = evaluate(
            pico_llama, pico_tokenizer, suite=Memorization(retain="retain.jsonl", max_new_tokens=4), data=tmp_path, quiet=True
        )
        for task in ("forget", "retain"):
            answered = ("probability", "perplexity") if task == "retain" else ()
            for metric in (*answered, "extraction_strength", "exact_memorization", "rouge"):
                score = evaluation.get(task, metric)
                assert score is not None
                assert score.value is not None
        (tmp_path / "forget.jsonl").write_text("\n".join(raw + asked))
        with pytest.raises(ExpungeError, match="two files"):
            Memorization().build(tmp_path)
