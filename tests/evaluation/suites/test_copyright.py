"""The copyright suite: prompts from titles and first sentences, and the gap to a retain model."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge import ExpungeError, evaluate
from expunge.evaluation.metrics.base import Unscored
from expunge.evaluation.metrics.similarity_gap import similarity_gap
from expunge.evaluation.suites import Copyright
from expunge.evaluation.suites.copyright import read_works


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_a_prompt_is_a_title_or_a_first_sentence(tmp_path: Path) -> None:
    works = read_works(
        write(
            tmp_path,
            {"title": "A storm - BBC News", "content": "It rained. It was 3.5 m deep."},
            {"text": '"Is it you?" asked Ann. He said no. Then he left.'},
            {"prompt": "Once", "response": "upon a time."},
        )
    )
    assert [(e.prompt, e.response) for e in works] == [
        ("A storm", " It rained. It was 3.5 m deep."),
        ('"Is it you?"', " asked Ann. He said no. Then he left."),
        ("Once", " upon a time."),
    ]
    for bad in ({"text": "One sentence only."}, {"title": "t", "text": " "}, {"title": "t"}):
        with pytest.raises(ExpungeError, match="line 1"):
            read_works(write(tmp_path, bad))


def test_the_gap_is_the_mean_over_measures_of_the_difference_of_means() -> None:
    mine = {"rouge": {"a": 0.5, "b": 0.3}, "bleu": {"a": 0.1, "b": 0.1}}
    retained = {"rouge": {"a": 0.2, "b": 0.2, "c": 1.0}, "bleu": {"a": 0.3, "b": 0.1}}
    assert similarity_gap(mine, retained) == pytest.approx((0.2 + 0.1) / 2)
    assert similarity_gap(mine, mine) == 0
    assert isinstance(similarity_gap(mine, {"rouge": {"a": 1.0}, "bleu": {}}), Unscored)
    assert isinstance(similarity_gap({}, {}), Unscored)


def test_it_is_scored_against_a_retain_model(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, pico_folder: Path, tmp_path: Path
) -> None:
    data = write(
        tmp_path / "data",
        {"title": "the blue bird", "text": "where is the cat of anna and the dog of boris ?"},
        {"title": "one plus two", "text": "is not the name of the river in lima ."},
    )
    how: dict[str, Any] = {"data": data, "quiet": True}
    first = evaluate(pico_llama, pico_tokenizer, suite=Copyright(fluency=str(pico_folder)), out=tmp_path / "retain", **how)
    values = {score.metric: score for score in first.scores}
    assert {"rouge", "bleu", "unique_token_ratio", "perplexity", "average_similarity_gap"} <= set(values)
    assert values["rouge"].n == 2
    assert values["average_similarity_gap"].value is None
    assert "--retain-scores" in str(values["average_similarity_gap"].unscored)
    missing = {name for name in ("meteor", "bert_score") if values[name].value is None}
    assert all(values[name].unscored for name in missing)
    same = evaluate(pico_llama, pico_tokenizer, suite=Copyright(retain_scores=tmp_path / "retain"), **how)
    gap = next(score for score in same.scores if score.metric == "average_similarity_gap")
    assert gap.value == 0.0
