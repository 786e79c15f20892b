"""A score says of how many samples it is not, and how many of its samples were read in part only."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from expunge.attacks import results
from expunge.cli.evaluate import table
from expunge.data.example import Example
from expunge.evaluation.metrics import Accuracy, ExactMatch, Metric, Perplexity, Probability, PromptCut, Repetition, TruthRatio
from expunge.evaluation.run import evaluate
from expunge.evaluation.task import Suite, Task
from expunge.records import Evaluation, Score, read_samples
from expunge.report.latex import latex
from expunge.report.tables import Column, Table, html, markdown, score_cell

LONG = "a city of bird and of fish with a river and a city of cat and dog"
ROWS = (Example("where is anna ?", "oslo"), Example("where is boris ?", LONG), Example("where is clara ?", "lima"))


@pytest.fixture
def scored(pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Evaluation]:
    def score(
        *metrics: Metric,
        model: PreTrainedModel = pico_llama,
        rows: tuple[Example, ...] = ROWS,
        max_length: int = 1024,
        **how: object,
    ) -> Evaluation:
        task = Task("facts", rows, metrics, "forget", **how)  # type: ignore[arg-type]
        suite, out = Suite("trial", (task,), lambda results: []), tmp_path / "out"
        return evaluate(model, pico_tokenizer, suite=suite, out=out, max_length=max_length, quiet=True, overwrite=True)

    return score


def test_a_text_that_is_cut_off_is_counted_and_said(scored: Callable[..., Evaluation], tmp_path: Path) -> None:
    found = scored(Probability(), Perplexity(), ExactMatch(), max_length=16, max_new_tokens=4)
    assert [score.cut for score in found.scores] == [{"text": 1}, {"text": 1}, {}]
    assert "1 of 3 samples were read without the end of their answer, which did not fit" in table(found)
    samples = [sample for sample in read_samples(tmp_path / "out/trial.samples.jsonl") if sample.metric == "probability"]
    assert [sample.cut for sample in samples] == [None, ("text",), None]


def test_a_whole_text_is_said_nothing_of(scored: Callable[..., Evaluation]) -> None:
    found = scored(Probability(), ExactMatch(), max_new_tokens=4)
    assert all(not score.remarks() for score in found.scores)


def test_choices_and_wrong_answers_that_are_cut_off_count_too(scored: Callable[..., Evaluation]) -> None:
    chosen = Example("where is dario ?", LONG, ("oslo", LONG), 1)
    wrong = Example("where is anna ?", "oslo", paraphrases=("in oslo",), perturbed=(LONG,))
    assert scored(Accuracy(), rows=(chosen, *ROWS[:1]), max_length=16).scores[0].cut == {"text": 1}
    assert scored(TruthRatio(), rows=(wrong,), max_length=16).scores[0].cut == {"text": 1}


def test_an_answer_that_ends_for_lack_of_room_is_told_from_one_that_ends_by_itself(
    scored: Callable[..., Evaluation], pico_llama: LlamaForCausalLM
) -> None:
    with torch.no_grad():
        pico_llama.lm_head.weight[2] = 0  # never ends by itself
        pico_llama.lm_head.weight[3:] += 1e-3
    assert scored(Repetition(), rows=ROWS[::2], max_length=16, max_new_tokens=40).scores[0].cut == {"answer": 2}
    assert scored(Repetition(), rows=ROWS[::2], max_new_tokens=10).scores[0].cut == {}
    verbatim = scored(Repetition(), rows=ROWS[::2], max_new_tokens=100, verbatim=True)
    assert verbatim.scores[0].cut == {"answer": 2}  # half of 128 positions


def test_a_prompt_without_its_beginning_is_said_beside_every_score_of_it(
    scored: Callable[..., Evaluation], model_of: Callable[..., PreTrainedModel]
) -> None:
    short = model_of("llama", max_position_embeddings=16)
    rows = (Example(LONG, " oslo"), Example("where is anna ?", " lima"), Example(None, LONG))
    found = scored(Probability(), PromptCut(), model=short, rows=rows, verbatim=True)
    assert found.scores[0].cut == {"prompt": 2}
    assert found.scores[1].cut == {}
    assert "2 of 3 samples were read without their beginning" in table(found)


def test_a_score_of_some_samples_says_why_the_others_have_none(
    scored: Callable[..., Evaluation], pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    with torch.no_grad():
        pico_llama.model.embed_tokens.weight[pico_tokenizer.convert_tokens_to_ids("boris")] = float("nan")
    found = scored(Probability(), max_new_tokens=4)
    assert (found.scores[0].n, found.scores[0].left_out) == (2, {"the model's log-probabilities are not numbers": 1})
    assert "1 of 3 samples have no value: the model's log-probabilities are not numbers" in table(found)


def test_a_page_shows_the_number_with_a_footnote() -> None:
    score = Score(task="facts", metric="probability", value=0.25, low=0.1, high=0.4, n=4, cut={"text": 1})
    cells = (score_cell(None), score_cell(score))
    made = Table("trial", "Trial", (Column("a"), Column("b")), (cells,))
    for text in (html(made), markdown(made), latex(made)):
        assert "0.25" in text
        assert "1 of 4 samples were read without the end of their answer" in text


def test_a_score_after_an_attack_says_of_which_facts_it_is_not() -> None:
    score = results._score("forget", "recall", np.array([0.5, np.nan, 1.0]))
    assert (score.value, score.n, score.left_out) == (0.75, 2, {results.NO_VALUE: 1})


def test_words_that_the_tokenizer_does_not_know_are_said_beside_every_score_that_reads_them(
    scored: Callable[..., Evaluation],
) -> None:
    rows = (Example("where is anna ?", "Zürich"), Example("where is boris ?", "oslo"), Example("wo ist clara ?", "lima"))
    found = scored(Probability(), ExactMatch(), rows=rows, max_new_tokens=4)
    assert [score.cut for score in found.scores] == [{"unknown": 2}, {"unknown": 2}]
    assert "2 of 3 samples have words that the tokenizer does not know" in table(found)
    wrong = Example("where is anna ?", "oslo", paraphrases=("in oslo",), perturbed=("Zürich",))
    found = scored(Probability(), TruthRatio(), rows=(wrong,))
    assert [score.cut for score in found.scores] == [{}, {"unknown": 1}]


def test_control_tokens_that_are_written_out_are_said_beside_every_score_that_reads_them(
    scored: Callable[..., Evaluation],
) -> None:
    rows = (
        Example("where is anna ?", "oslo </s> lima"),
        Example("where is boris ?", "oslo"),
        Example("<s> where ?", "lima <unk>"),
    )
    found = scored(Probability(), ExactMatch(), rows=rows, max_new_tokens=4)
    assert [score.cut["control"] for score in found.scores] == [2, 2]
    assert "2 of 3 samples hold a control token written out" in table(found)
