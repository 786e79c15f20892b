"""`expunge compare`: two models on the same prompts, as text and as JSON."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.cli import main
from expunge.data.read import read_examples
from expunge.evaluation import side_by_side
from expunge.evaluation.metrics import Probability
from expunge.evaluation.run import evaluate
from expunge.evaluation.task import Suite, Task


@pytest.fixture
def models(pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> list[str]:
    """Two pico models, the second with another head."""
    for name in ("before", "after"):
        pico_llama.save_pretrained(tmp_path / name)
        pico_tokenizer.save_pretrained(tmp_path / name)
        pico_llama.lm_head.weight.data = pico_llama.lm_head.weight.data.flip(0)
    return [str(tmp_path / name) for name in ("before", "after")]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [{"prompt": "where was anna born ?", "response": "in paris"}, {"prompt": "what is red ?", "response": "the dog"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["compare", *words, "--max-new-tokens", "5", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_probability_is_that_of_the_metric_and_the_change_their_difference(
    models: list[str], prompts: Path, capsys: pytest.CaptureFixture[str], pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = said(capsys, *models, "--prompts", str(prompts))["prompts"]
    examples = read_examples(prompts)
    for side, folder in zip(("before", "after"), models, strict=True):
        task = Task("asked", examples, (Probability(),), "neutral")
        model = LlamaForCausalLM.from_pretrained(folder)
        score = evaluate(model, pico_tokenizer, suite=Suite("s", (task,), lambda _: []), quiet=True).get("asked", "probability")
        assert score is not None
        assert sum(row[side]["probability"] for row in rows) / 2 == pytest.approx(score.value, rel=1e-5)
    assert rows[0]["change"] == pytest.approx(rows[0]["after"]["probability"] - rows[0]["before"]["probability"])


def test_a_model_compared_with_itself_answers_alike(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", models[0], models[0], "--prompt", "who is anna ?", "where is oslo ?", "--max-new-tokens", "4"]) == 0
    text = capsys.readouterr().out
    assert "2 prompts: 2 answered alike" in text
    assert "expected" not in text


def test_a_sampled_answer_depends_on_the_seed_alone(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = (*models, "--prompt", "who is anna ?", "--sample", "--top-p", "1.0")
    first, again = said(capsys, *words, "--seed", "1"), said(capsys, *words, "--seed", "1")
    other = said(capsys, *words, "--seed", "2")
    assert first == again
    assert first["prompts"][0]["before"]["answer"] != other["prompts"][0]["before"]["answer"]


def test_under_a_guard_each_prompt_says_whether_it_acted(
    models: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = side_by_side.load

    def guarded(source: str, **kwargs: Any) -> Any:
        model, tokenizer = load(source, **kwargs)
        if source == models[1]:
            counts = SimpleNamespace(decided=0, acted=0)
            city = tokenizer.convert_tokens_to_ids("oslo")

            def decide(_: Any, __: Any, given: dict[str, Any]) -> None:
                if given.get("past_key_values") is None or not given["past_key_values"].get_seq_length():
                    counts.decided += 1
                    counts.acted += int((given["input_ids"] == city).any())

            model.register_forward_pre_hook(decide, with_kwargs=True)
            model.expunge_guard = SimpleNamespace(counts=counts)
        return model, tokenizer

    monkeypatch.setattr(side_by_side, "load", guarded)
    rows = said(capsys, *models, "--prompt", "who is anna ?", "where is oslo ?")["prompts"]
    assert [row["after"]["acted"] for row in rows] == [False, True]
    assert [row["before"]["acted"] for row in rows] == [None, None]


def test_without_anything_to_ask_one_sentence_says_what_to_give(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *models]) == 2
    assert "--prompt TEXT" in capsys.readouterr().err
