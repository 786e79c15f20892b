"""The suite of toxic completions: by group and over all, judged by a classifier, read by a second model, drawn several times."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from expunge.cli import main
from expunge.errors import ExpungeError
from expunge.evaluation.generate import text_of
from expunge.evaluation.judges import Classifier
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites import ToxicCompletions
from expunge.evaluation.suites.toxicity import JUDGE, LABEL, REVISION
from expunge.evaluation.task import Suite
from expunge.records import Evaluation, Score, read_evaluation, read_samples

SPELLED = {"mexican": "mexican folks", "women": "women", "physical_dis": "folks with physical disabilities"}
STATEMENTS = [(group, f"{group} number {i} is here") for group in SPELLED for i in range(4)]


def write_statements(folder: Path, rows: list[tuple[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "annotated_test.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "target_group", "toxicity_ai", "toxicity_human"])
        writer.writerows([[text, SPELLED[group], 1.0, 2.0] for group, text in rows])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both corpora in their published layouts, with harmless words."""
    root = tmp_path_factory.mktemp("toxicity")
    write_statements(root / "toxigen", STATEMENTS)
    (root / "toxigen/prompts").mkdir()
    for kind in ("hate", "neutral"):
        lines = [f"- {kind} {i} a\\n- {kind} {i} b\\n-" for i in range(5)]
        (root / f"toxigen/prompts/{kind}_physical_disability_1k.txt").write_text("\n".join(lines) + "\n")
    (root / "real_toxicity_prompts").mkdir()
    rows = [
        {"prompt": {"text": f"The rain {i}", "toxicity": 0.1}, "continuation": {"text": " falls"}, "challenging": i % 3 == 0}
        for i in range(9)
    ]
    (root / "real_toxicity_prompts/prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0,
        max_position_embeddings=512, initializer_range=1.0,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def byte_folder(byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    byte_llama.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def toxicity(judge: Path, **options: Any) -> ToxicCompletions:
    return ToxicCompletions(judge=str(judge), label="LABEL_1", **options)


def tasks(suite: Suite) -> dict[str, list[str]]:
    return {task.name: [example.prompt or "" for example in task.examples] for task in suite.tasks}


def score(evaluation: Evaluation, task: str, metric: str) -> Score:
    found = evaluation.get(task, metric)
    assert found is not None, (task, metric)
    assert found.value is not None, found
    return found


def test_it_asks_by_group_in_the_words_of_the_statements(data: Path) -> None:
    suite = ToxicCompletions().build(data)
    assert list(tasks(suite)) == ["toxigen_mexican", "toxigen_physical_dis", "toxigen_women", "real_toxicity_prompts"]
    task = suite.tasks[0]
    assert [example.prompt for example in task.examples] == [text for group, text in STATEMENTS if group == "mexican"]
    assert (task.max_new_tokens, task.stop, task.verbatim, task.secret) == (512, ("\n",), True, True)
    rest = suite.tasks[-1]
    assert (len(rest.examples), rest.max_new_tokens, rest.draws) == (9, 20, 0)
    (judge,) = task.judges
    assert judge == Classifier(model=JUDGE, label=LABEL, revision=REVISION)


def test_shares_and_means_are_those_of_each_completion_alone(
    byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, data: Path, judge: Path, tmp_path: Path
) -> None:
    suite = toxicity(judge, tasks=("toxigen",), max_new_tokens=12)
    found = evaluate(byte_llama, byte_tokenizer, suite=suite, data=data, out=tmp_path, show_forget_text=True, quiet=True)
    classifier = LlamaForSequenceClassification.from_pretrained(judge).eval()
    by_group: dict[str, list[float]] = {}
    written = [row for row in read_samples(tmp_path / "toxicity.samples.jsonl") if row.text is not None]
    for (group, prompt), row in zip(sorted(STATEMENTS), sorted(written, key=lambda row: (row.text or {})["prompt"]), strict=True):
        ids = byte_tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            answer = byte_llama.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        completion = text_of(byte_tokenizer, tuple(answer.tolist())).partition("\n")[0]
        assert row.text == {"prompt": prompt, "expected": "", "generated": completion}
        with torch.no_grad():
            logits = classifier(**byte_tokenizer(completion, return_tensors="pt")).logits[0]
        by_group.setdefault(group, []).append(float(logits.softmax(0)[1]))
    assert 0 < sum(p > 0.5 for values in by_group.values() for p in values) < len(STATEMENTS), "both verdicts occur"
    for group, probabilities in by_group.items():
        assert score(found, f"toxigen_{group}", "toxicity").value == pytest.approx(np.mean(probabilities), abs=1e-5)
        rate = score(found, f"toxigen_{group}", "harmful_rate")
        assert rate.value == np.mean([p > 0.5 for p in probabilities])
        assert (rate.n, rate.higher_is_better) == (4, False)
    everyone = [p for values in by_group.values() for p in values]
    assert score(found, "toxigen", "harmful_rate").value == pytest.approx(np.mean([p > 0.5 for p in everyone]))
    assert score(found, "toxigen", "harmful_rate").n == len(STATEMENTS)


def test_fluency_and_draws_are_there_when_asked_for(
    byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, byte_folder: Path, data: Path, judge: Path
) -> None:
    options = {"fluency": str(byte_folder), "draws": 3, "groups": ("women", "mexican"), "max_new_tokens": 8}
    found = evaluate(byte_llama, byte_tokenizer, suite=toxicity(judge, **options), data=data, quiet=True)
    groups = [score(found, f"toxigen_{group}", "perplexity") for group in ("women", "mexican")]
    whole = score(found, "toxigen", "perplexity")
    assert whole.value == pytest.approx(np.exp(np.mean([np.log(group.value or 0) for group in groups])), rel=1e-6)
    assert (whole.low or 0) <= whole.value <= (whole.high or 0)
    assert whole.higher_is_better is False
    worst = score(found, "real_toxicity_prompts", "expected_maximum_toxicity")
    assert (worst.n, worst.higher_is_better) == (9, False)
    assert score(found, "real_toxicity_prompts", "toxicity_probability").value in [i / 9 for i in range(10)]
    assert [used.settings["kind"] for used in found.judges] == ["classifier", "second_model"]
    assert all(used.fingerprint for used in found.judges)
    plain = evaluate(byte_llama, byte_tokenizer, suite=toxicity(judge, max_new_tokens=8), data=data, quiet=True)
    assert {s.metric for s in plain.scores} == {"harmful_rate", "toxicity"}
    assert score(plain, "toxigen_women", "toxicity").value == score(found, "toxigen_women", "toxicity").value


def test_few_prompts_are_always_the_same_ones(data: Path, tmp_path: Path) -> None:
    few = tasks(ToxicCompletions(tasks=("toxigen",), per_group=2).build(data))
    assert {len(prompts) for prompts in few.values()} == {2}
    shuffled = [*STATEMENTS]
    random.Random(1).shuffle(shuffled)
    write_statements(tmp_path, shuffled)
    other = tasks(ToxicCompletions(tasks=("toxigen",), per_group=2, groups=("women",)).build(tmp_path))
    assert set(other["toxigen_women"]) == set(few["toxigen_women"])
    three = tasks(ToxicCompletions(tasks=("toxigen",), per_group=3).build(data))
    assert all(set(few[name]) < set(three[name]) for name in few)
    assert len(tasks(ToxicCompletions(rtp_prompts=4).build(data))["real_toxicity_prompts"]) == 4


def test_challenging_prompts_alone_and_raw_prompts_of_both_kinds(data: Path) -> None:
    chosen = ToxicCompletions(tasks=("real_toxicity_prompts",), challenging=True).build(data)
    assert tasks(chosen)["real_toxicity_prompts"] == ["The rain 0", "The rain 3", "The rain 6"]
    raw = ToxicCompletions(tasks=("toxigen",), prompts="raw", groups=("physical_dis",), per_group=2).build(data)
    prompts = tasks(raw)["toxigen_physical_dis"]
    assert [prompt.partition(" ")[2].partition(" ")[0] for prompt in prompts] == ["hate", "hate", "neutral", "neutral"]
    assert all(prompt.endswith("\n-") for prompt in prompts)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"groups": ("woman",)}, r"groups=woman: .*did you mean 'women'"),
        ({"groups": ("muslim",)}, "no test statement about the group muslim"),
        ({"prompts": "raw", "groups": ("women",)}, "holds no prompts/hate_women"),
    ],
)
def test_what_the_data_does_not_have_is_named(data: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ExpungeError, match=why):
        ToxicCompletions(**options).build(data)


def test_only_the_data_that_is_asked_for_is_needed(data: Path, tmp_path: Path) -> None:
    (tmp_path / "toxigen").symlink_to(data / "toxigen")
    assert len(ToxicCompletions(tasks=("toxigen",)).build(tmp_path).tasks) == 3
    assert len(ToxicCompletions(tasks=("toxigen",)).build(tmp_path / "toxigen").tasks) == 3
    with pytest.raises(ExpungeError, match=r"holds no prompts\.jsonl .*get it from allenai/real-toxicity-prompts"):
        ToxicCompletions().build(tmp_path)


def test_a_judge_that_is_not_there_stops_before_anything_is_generated(
    byte_folder: Path,
    data: Path,
    judge: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("expunge.evaluation.rows.generate", lambda *a, **k: pytest.fail("generated"))
    words = ["evaluate", str(byte_folder), "--suite", "toxicity", "--data", str(data), "--out", str(tmp_path / "out")]
    for options, why in (
        ([], f"cannot load the classifier {JUDGE}"),
        ([f"judge={tmp_path}"], f"cannot load the classifier {tmp_path}"),
        ([f"judge={byte_folder}", "label=LABEL_1"], "is no classifier"),
        ([f"judge={judge}", "label=LABEL_2"], "has no label 'LABEL_2'"),
    ):
        assert main([*words, "--options", *options] if options else words) == 2
        printed = capsys.readouterr().err
        assert why in printed
        assert printed.count("expunge:") == 1
        assert not (tmp_path / "out").exists()


def test_the_command_line_writes_no_text_and_says_who_judged(
    byte_folder: Path, data: Path, judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = [f"judge={judge}", "label=LABEL_1", "per_group=1", "max_new_tokens=4", "rtp_prompts=2", "draws=2"]
    words = ["evaluate", str(byte_folder), "--suite", "toxicity", "--data", str(data), "--out", str(out), "--options", *options]
    assert main(words) == 0
    assert "toxigen_physical_dis" in capsys.readouterr().out
    evaluation = read_evaluation(out / "toxicity.json")
    assert evaluation.judges[0].settings["model"] == str(judge)
    assert {s.task: s.n for s in evaluation.scores if s.metric == "harmful_rate"} == {
        "toxigen_mexican": 1, "toxigen_physical_dis": 1, "toxigen_women": 1, "real_toxicity_prompts": 2, "toxigen": 3,
    }  # fmt: skip
    written = "".join(path.read_text() for path in out.iterdir())
    assert "number" not in written
    assert "The rain" not in written
