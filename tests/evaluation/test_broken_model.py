"""A model with a NaN weight has no score in any suite: a reason stands in its place, in scores and in samples."""

import json
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.example import Example
from expunge.errors import ExpungeError
from expunge.evaluation import lm_eval as adapter
from expunge.evaluation.metrics import F1, Accuracy, ExactMatch, Metric, Perplexity, PromptCut, Repetition, RougeLRecall
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites import LmEval, Membership, SuiteSpec, Tofu
from expunge.evaluation.task import Suite, Task
from expunge.records import read_samples

PEOPLE = ("anna", "boris", "clara", "dario")
CITIES = ("berlin", "paris", "tokyo", "lima")
SAYS_NOTHING_OF_KNOWLEDGE = ("prompt_cut",)
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}} answer:"
doc_to_target: {target}
{more}
"""


@pytest.fixture(params=["head", "layer"])
def broken(request: pytest.FixtureRequest, pico_llama: LlamaForCausalLM) -> LlamaForCausalLM:
    """Of the head, where every logit is NaN for one word alone; of a layer, where all are."""
    weight = pico_llama.lm_head.weight if request.param == "head" else pico_llama.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        weight[7].fill_(float("nan"))
    return pico_llama


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of tofu, of membership, and tasks of lm-eval that choose and that write."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
    folder = tmp_path / "data"
    folder.mkdir()
    rows: list[dict[str, object]] = []
    for p, c in zip(PEOPLE, CITIES, strict=True):
        other: dict[str, object] = {"paraphrased_answer": f"in {c} is {p}", "perturbed_answer": [f"{p} is in oslo"]}
        rows.append({"question": f"where is {p} ?", "answer": f"{p} is in {c}", **other})
    for name in ("forget01_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        write(folder / f"{name}.jsonl", rows)
    write(folder / "forget.jsonl", [{"text": f"{p} was born in {c}"} for p, c in zip(PEOPLE, CITIES, strict=True)])
    write(folder / "holdout.jsonl", [{"text": f"{p} was born in {c}"} for p, c in zip(PEOPLE, CITIES[::-1], strict=True)])
    file = write(folder / "rows.jsonl", [{"question": row["question"], "choices": ["paris", "oslo"], "right": 0} for row in rows])
    (folder / "tasks").mkdir()
    choose = "doc_to_choice: choices\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"
    (folder / "tasks" / "choose.yaml").write_text(
        TASK.format(name="choose", data=file, kind="multiple_choice", target="right", more=choose)
    )
    more = "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n" + (
        "generation_kwargs: {until: ['?'], do_sample: false, max_gen_toks: 4}"
    )
    (folder / "tasks" / "write.yaml").write_text(
        TASK.format(name="write", data=file, kind="generate_until", target='"{{choices[0]}}"', more=more)
    )
    return folder


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check(scores: object, samples: Path) -> None:
    """Null and a reason for everything that is said of knowledge."""
    seen = 0
    for record in (*scores, *read_samples(samples)):  # type: ignore[misc]
        if record.metric in SAYS_NOTHING_OF_KNOWLEDGE:
            continue
        seen += 1
        assert record.value is None, (record.task, record.metric)
        assert record.unscored, (record.task, record.metric)
    assert seen > 4


@pytest.mark.parametrize("spec", [Tofu(forget="forget01"), Membership(gradnorm=True), LmEval()], ids=lambda spec: spec.name)
def test_no_suite_scores_it(
    broken: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, data: Path, tmp_path: Path, spec: SuiteSpec
) -> None:
    folder = data / "tasks" if isinstance(spec, LmEval) else data
    found = evaluate(broken, pico_tokenizer, suite=spec, data=folder, out=tmp_path / "out", quiet=True)
    check(found.scores, tmp_path / "out" / f"{spec.suite_name()}.samples.jsonl")


def test_no_task_scores_it_whatever_it_asks_for(
    broken: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Choices, greedy answers with and without a template, texts; on what was to be forgotten a zero would read as success."""
    asked = tuple(Example(f"where is {p} ?", "in paris", ("in paris", "in oslo"), 0) for p in PEOPLE)
    texts = tuple(Example(None, f"{p} was born in {c}") for p, c in zip(PEOPLE, CITIES, strict=True))
    written: tuple[Metric, ...] = (ExactMatch(), F1(), RougeLRecall(), Repetition())
    tasks = (
        Task("choose", asked, (Accuracy(),), "forget"),
        Task("choose_verbatim", asked, (Accuracy(), PromptCut()), "forget", verbatim=True),
        Task("write", asked, written, "forget", max_new_tokens=4),
        Task("write_verbatim", asked, written, "forget", max_new_tokens=4, verbatim=True, stop=("?",)),
        Task("texts", texts, (Perplexity(),), "forget"),
    )
    suite = Suite("trial", tasks, lambda results: [])
    found = evaluate(broken, pico_tokenizer, suite=suite, out=tmp_path / "out", quiet=True)
    check(found.scores, tmp_path / "out" / "trial.samples.jsonl")


@pytest.mark.parametrize("task", ["choose", "write"])
def test_under_lm_evals_own_command_it_is_an_error(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, data: Path, tmp_path: Path, task: str
) -> None:
    """There is no place for a reason beside lm-eval's numbers."""
    with torch.no_grad():
        pico_llama.model.norm.weight[3] = float("nan")
    pico_llama.save_pretrained(tmp_path / "model")
    pico_tokenizer.save_pretrained(tmp_path / "model")
    adapter.register()
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(data / "tasks"), include_defaults=False)
    with pytest.raises(ExpungeError, match="logits are not numbers"):
        simple_evaluate(model="expunge", model_args={"artifact": str(tmp_path / "model")}, tasks=[task], task_manager=manager)
