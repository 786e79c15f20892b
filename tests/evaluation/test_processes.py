"""Two gloo processes give the scores of one, and only one of them writes, judges and prints."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.evaluation.run import evaluate
from expunge.evaluation.suites import LmEval
from expunge.loading import load
from expunge.records import read_evaluation, read_samples

SCRIPT = """
import os, sys
import torch; torch.set_num_threads(1)
from pathlib import Path
from expunge.data.example import Example
from expunge.evaluation.judges import Function
from expunge.evaluation.metrics import (
    Accuracy, ExpectedMaximumToxicity, ExtractionStrength, MiaGradnorm, MiaMinKPlusPlus, Perplexity, Probability, RougeLRecall,
    Toxicity, TruthRatio)
from expunge.evaluation.task import Suite, Task

NAMES = "anna boris clara dario elena fyodor greta hugo irma".split()
CITIES = "berlin paris tokyo lima cairo oslo quito delhi accra".split()
PEOPLE = list(enumerate(zip(NAMES, CITIES)))
FACTS = tuple(
    Example(f"where was {n} born ?", f"{n} was born in the city of {c}" + " ." * (i % 4), perturbed=(f"{n} was born in oslo",))
    for i, (n, c) in PEOPLE)
CHOICES = ("a nurse", "a judge and a pilot", "a tailor")
QUESTIONS = tuple(Example(f"who is {n} ?", "a nurse", choices=CHOICES, answer=0) for n in NAMES[:5])
METRICS = (
    Probability(), TruthRatio(), ExtractionStrength(), RougeLRecall(), MiaMinKPlusPlus(), MiaGradnorm(), Perplexity(),
    Toxicity(judge=Function(function="two:count")))
FLUENT = (
    Perplexity(model=os.environ["SECOND"], of="generated", verbatim=True),  # its engine runs on one process alone
    ExpectedMaximumToxicity(judge=Function(function="two:length")))

def count(prompt, answer):
    with open("judged", "a") as file:
        file.write(".")
    return len(answer) / 100

def length(prompt, answer):
    return len(answer) / 100

def suite():
    facts = Task("facts", FACTS, METRICS, "forget", max_new_tokens=12)
    fluent = Task("fluent", QUESTIONS, FLUENT, "neutral", max_new_tokens=8, verbatim=True, draws=3)
    return Suite("both", (facts, Task("questions", QUESTIONS, (Accuracy(),), "neutral"), fluent), lambda results: [])

if __name__ == "__main__":
    import two
    from expunge.loading import load
    from expunge.evaluation.run import evaluate
    from expunge.processes import is_main, join
    join()
    model, tokenizer = load(sys.argv[1], dtype="float32")
    evaluation = evaluate(model, tokenizer, suite=two.suite(), out=sys.argv[2], fingerprint="m", max_tokens=64, quiet=True)
    scores = [score.model_dump() for score in evaluation.scores]
    every = [None, None]
    torch.distributed.all_gather_object(every, scores)
    assert every[0] == every[1], every
    print(f"main={is_main()}", flush=True)
"""


@pytest.fixture(scope="module")
def folders(
    pico_folder: Path, tmp_path_factory: pytest.TempPathFactory, two_processes: Callable[..., list[Any]]
) -> tuple[Path, Path]:
    """The folder of the script, with the results of two processes in `out`; the model."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "two.py").write_text(SCRIPT)
    words = [str(folder / "two.py"), str(pico_folder), str(folder / "out")]
    both = two_processes(words, {"SECOND": str(pico_folder)}, folder)
    assert [re.findall("main=(True|False)", process.stdout) for process in both] == [["True"], ["False"]]
    (folder / "judged").rename(folder / "judged_by_two")
    return folder, pico_folder


def test_two_processes_give_the_very_numbers_of_one(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model_folder = folders
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SECOND", str(model_folder))
    import two

    model, tokenizer = load(str(model_folder), dtype="float32")
    one = evaluate(model, tokenizer, suite=two.suite(), out=folder / "one", max_tokens=64, quiet=True)
    assert one.scores == read_evaluation(folder / "out/both.json").scores
    assert list(read_samples(folder / "one/both.samples.jsonl")) == list(read_samples(folder / "out/both.samples.jsonl"))
    assert all(score.value is not None for score in one.scores)


def test_one_process_judges_and_nothing_unfinished_is_left(folders: tuple[Path, Path]) -> None:
    folder, _ = folders
    assert (folder / "judged_by_two").read_text() == "." * 9
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["both.json", "both.samples.jsonl"]


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}} answer:"
"""
CHOSEN = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """
output_type: generate_until
doc_to_target: "{{city}}"
generation_kwargs: {until: ["?"], do_sample: false, max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.slow
def test_lm_eval_on_two_processes_gives_the_very_numbers_of_one(
    pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_processes: Callable[..., list[Any]]
) -> None:
    """Questions with choices and written answers, through the command line; some prompts are too long for the model."""
    born = zip(
        ["anna", "boris", "clara", "dario", "elena", "fyodor"], ["lima", "paris", "tokyo", "oslo", "cairo", "quito"], strict=True
    )
    rows = [
        {
            "question": f"where was {n} born " + "? " * (4**i % 300),
            "choices": [c, f"in the city of {c} ."],
            "answer": 1,
            "city": c,
        }
        for i, (n, c) in enumerate(born)
    ]
    tasks, data = tmp_path / "tasks", tmp_path / "questions.jsonl"
    tasks.mkdir()
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("chosen", CHOSEN), ("written", WRITTEN)):
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + text)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    environment = {"HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    words = ["-m", "expunge", "evaluate", str(pico_folder), "--suite", "lm_eval", "--data", str(tasks), "--show-forget-text"]
    one, two = tmp_path / "one", tmp_path / "two"
    both = two_processes([*words, "--out", str(two)], environment)
    assert [len(re.findall(r"^lm_eval: ", process.stdout, re.MULTILINE)) for process in both] == [1, 0]  # one table
    model, tokenizer = load(str(pico_folder))
    evaluate(model, tokenizer, suite=LmEval(), data=tasks, out=one, show_forget_text=True, quiet=True)
    assert read_evaluation(one / "lm_eval.json").scores == read_evaluation(two / "lm_eval.json").scores
    samples = list(read_samples(one / "lm_eval.samples.jsonl"))
    assert samples == list(read_samples(two / "lm_eval.samples.jsonl"))
    assert len({row.text["generated"] for row in samples if row.text and row.task == "written"}) > 1
    assert 0 < sum(row.value or 0 for row in samples if row.metric == "prompt_cut") < 2 * len(rows)
    assert sorted(path.name for path in two.iterdir()) == ["lm_eval.json", "lm_eval.samples.jsonl"]
