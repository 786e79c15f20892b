"""The suites of skills and of questions with choices: from folders as published to scores."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.cli import main
from expunge.data.corpora.mmlu import SUBJECTS
from expunge.errors import ExpungeError
from expunge.evaluation.metrics import Accuracy
from expunge.evaluation.metrics.base import Role
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites import Arc, Choices, Mmlu, Skills, SuiteSpec, Wmdp
from expunge.evaluation.suites.pooled import pooled_score
from expunge.evaluation.task import Results, Task
from expunge.records import Evaluation, Sample

CHOICES = ["red", "green", "blue", "black"]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of every corpus, in the published layouts."""
    root = tmp_path_factory.mktemp("data")
    for name in ("gsm8k", "mbpp", "humaneval", "xquad", "mmlu/dev", "mmlu/test", "wmdp", "arc"):
        (root / name).mkdir(parents=True)
    (root / "gsm8k/test.jsonl").write_text(
        lines(*({"question": f"What is {i}?", "answer": f"It is.\n#### {i}"} for i in range(3)))
    )
    tasks = [(number, f"Write f{number}.") for number in (2, 3, 4, 11, 12)]
    mbpp = [{"task_id": n, "text": t, "code": f"def f{n}(): return 1", "test_list": [f"assert f{n}() == 1"]} for n, t in tasks]
    (root / "mbpp/mbpp.jsonl").write_text(lines(*mbpp))
    function = {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n", "entry_point": "f"}
    (root / "humaneval/HumanEval.jsonl.gz").write_bytes(
        gzip.compress(lines({**function, "test": "def check(f):\n    assert f() == 1"}).encode())
    )
    for language in ("en", "zh"):
        asked = {"id": "a", "question": "Who?", "answers": [{"text": "Anna", "answer_start": 0}]}
        (root / f"xquad/xquad.{language}.json").write_text(
            json.dumps({"data": [{"paragraphs": [{"context": "Anna did.", "qas": [asked]}]}]})
        )
    for i, subject in enumerate(SUBJECTS):
        for split, count in (("dev", 5), ("test", 1 + i % 3)):
            rows = "".join(f"{subject} {split} {k}?,{','.join(CHOICES)},{'ABCD'[(i + k) % 4]}\n" for k in range(count))
            (root / f"mmlu/{split}/{subject}_{split}.csv").write_text(rows)
    for domain, count in (("bio", 4), ("chem", 2), ("cyber", 3)):
        rows = [{"question": f"{domain} {k}?", "choices": CHOICES, "answer": k % 4} for k in range(count)]
        (root / f"wmdp/{domain}-questions.json").write_text(json.dumps(rows))
    for split, count in (("Test", 3), ("Train", 4)):
        rows = [
            {"question": f"{split} {k}?", "choices": {"text": CHOICES[:3], "label": ["A", "B", "C"]}, "answerKey": "ABC"[k % 3]}
            for k in range(count)
        ]
        for level in ("Easy", "Challenge"):
            (root / f"arc/ARC-{level}-{split}.jsonl").write_text(lines(*rows))
    (root / "own.jsonl").write_text(
        lines({"question": "Sky?", "choices": CHOICES, "answer": 2}, {"prompt": "Sun?", "choices": CHOICES, "answer": 0})
    )
    return root


def scored(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, suite: SuiteSpec, data: Path) -> Evaluation:
    return evaluate(model, tokenizer, suite=suite, data=data, quiet=True)


def test_all_skills_are_scored_and_code_only_with_permission(
    byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, data: Path
) -> None:
    suite = Skills(languages=("en", "zh"), forget=("gsm8k",))
    found = scored(byte_llama, byte_tokenizer, suite, data)
    names = {(score.task, score.metric): score for score in found.scores}
    code = {("mbpp", "pass_at_1"), ("humaneval", "pass_at_1")}
    expected = {("gsm8k", "exact_match"), ("mmlu", "accuracy"), *code}
    expected |= {(f"language_{name}", metric) for name in ("en", "zh") for metric in ("exact_match", "f1", "containment")}
    expected |= {(task, "prompt_cut") for task, _ in expected}
    assert set(names) == expected
    for key, score in names.items():
        assert (score.value is None) == (key in code)
    assert all("--allow-code-execution" in (names[key].unscored or "") for key in code)
    assert (names["gsm8k", "exact_match"].higher_is_better, names["mmlu", "accuracy"].higher_is_better) == (False, True)
    assert names["mmlu", "accuracy"].n == sum(1 + i % 3 for i in range(57))


def test_programs_are_run_with_permission(
    byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, data: Path
) -> None:
    found = scored(byte_llama, byte_tokenizer, Skills(tasks=("mbpp", "humaneval"), allow_code_execution=True), data)
    assert [s.value for s in found.scores if s.metric == "pass_at_1"] == [0.0, 0.0]
    assert [s.n for s in found.scores if s.metric == "pass_at_1"] == [2, 1]


def test_the_right_answers_pass_their_own_tests(data: Path) -> None:
    """What the suite hands to pass_at_1 is a program that its solution completes."""
    from expunge.evaluation.metrics import PassAt1, Row

    for task in Skills(tasks=("mbpp", "humaneval"), allow_code_execution=True).build(data).tasks:
        (metric, _) = task.metrics
        assert isinstance(metric, PassAt1)
        assert [metric.score(Row(example, generated=example.response)) for example in task.examples] == [1.0] * len(task.examples)


def test_prompts_carry_their_shots(data: Path) -> None:
    def prompt(suite: Skills, task: str) -> str:
        return next(t.examples[0].prompt or "" for t in suite.build(data).tasks if t.name == task)

    eight, none = Skills(), Skills(gsm8k_shots=0, mmlu_shots=0, mbpp_shots=3)
    assert prompt(eight.model_copy(update={"languages": ("en",)}), "gsm8k").count("The answer is") == 8
    bare = none.model_copy(update={"languages": ("en",)})
    assert prompt(bare, "gsm8k") == "Q: What is 0?\nA:"
    assert prompt(bare, "mbpp").count("[DONE]") == 3
    assert prompt(bare, "language_en") == "Context: Anna did.\n\nQuestion: Who?\n\nAnswer:"
    assert prompt(bare, "mmlu").count("Answer:") == 1


def test_the_first_questions_of_mmlu_are_of_all_subjects(data: Path) -> None:
    (task,) = Skills(tasks=("mmlu",), mmlu_shots=0).build(data).tasks
    assert [example.attributes["subject"] for example in task.examples[:57]] == list(SUBJECTS)


def test_only_the_data_of_the_chosen_skills_is_needed(data: Path, tmp_path: Path) -> None:
    (tmp_path / "gsm8k").symlink_to(data / "gsm8k")
    assert [task.name for task in Skills(tasks=("gsm8k",)).build(tmp_path).tasks] == ["gsm8k"]
    with pytest.raises(ExpungeError, match=r"there is no folder .*mbpp; give a folder that holds mbpp\.jsonl"):
        Skills(tasks=("gsm8k", "mbpp")).build(tmp_path)
    with pytest.raises(ExpungeError, match="no task german to forget"):
        Skills(tasks=("gsm8k",), forget=("german",)).build(tmp_path)


def test_mmlu_has_subjects_categories_and_groups(
    byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, data: Path
) -> None:
    found = scored(byte_llama, byte_tokenizer, Mmlu(shots=0, forget=("economics",)), data / "mmlu")
    by_task = {score.task: score for score in found.scores if score.metric == "accuracy"}
    pools = [
        "mmlu",
        "mmlu_stem",
        "mmlu_humanities",
        "mmlu_social_sciences",
        "mmlu_other",
        "mmlu_economics",
        "mmlu_law",
        "mmlu_physics",
    ]
    assert set(by_task) == {*(f"mmlu_{subject}" for subject in SUBJECTS), *pools, "mmlu_math"}
    parts = [by_task[f"mmlu_{subject}"] for subject in SUBJECTS]
    assert by_task["mmlu"].n == sum(part.n for part in parts)
    assert by_task["mmlu"].value == pytest.approx(sum(part.n * (part.value or 0) for part in parts) / by_task["mmlu"].n)
    assert by_task["mmlu_economics"].higher_is_better is False
    assert by_task["mmlu_econometrics"].higher_is_better is True
    assert by_task["mmlu"].higher_is_better is None, "some of it is to go, some to stay"


def test_mmlu_takes_subjects_and_groups_by_name(data: Path) -> None:
    suite = Mmlu(tasks=("law", "jurisprudence"), shots=2).build(data / "mmlu")
    assert [score.task for score in suite.summarize(Results({}))] == ["mmlu_law"], "and not mmlu, which is all subjects"
    assert [task.name for task in suite.tasks] == ["mmlu_international_law", "mmlu_professional_law", "mmlu_jurisprudence"]
    assert (suite.tasks[0].examples[0].prompt or "").count("Answer:") == 3
    with pytest.raises(ExpungeError, match="did you mean 'law'"):
        Mmlu(tasks=("laws",)).build(data / "mmlu")


def test_wmdp_has_domains_and_all_of_them(
    byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, data: Path
) -> None:
    found = scored(byte_llama, byte_tokenizer, Wmdp(), data / "wmdp")
    sizes = {score.task: score.n for score in found.scores if score.metric == "accuracy"}
    assert sizes == {"wmdp_bio": 4, "wmdp_chem": 2, "wmdp_cyber": 3, "wmdp": 9}
    assert all(score.higher_is_better is False for score in found.scores)
    assert Wmdp(style="continuation").build(data / "wmdp").name == "wmdp_continuation"
    some = Wmdp(tasks=("chem",)).build(data / "wmdp")
    assert [task.name for task in some.tasks] == ["wmdp_chem"]
    assert some.summarize(Results({})) == [], "a part is not called by the name of the whole"


def test_arc_and_a_file_of_ones_own(byte_llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    found = scored(byte_llama, byte_tokenizer, Arc(shots=2), data / "arc")
    assert {(s.task, s.metric) for s in found.scores} == {
        (f"arc_{level}", metric)
        for level in ("easy", "challenge")
        for metric in ("accuracy", "accuracy_normalized", "prompt_cut")
    }
    prompt = Arc(shots=2).build(data / "arc").tasks[0].examples[0].prompt
    assert prompt == "Question: Train 0?\nAnswer: red\n\nQuestion: Train 1?\nAnswer: green\n\nQuestion: Test 0?\nAnswer:"
    (task,) = Choices(header="About the sky.", role="forget").build(data / "own.jsonl").tasks
    assert (task.examples[0].prompt, task.examples[0].response, task.role) == (
        "About the sky.\n\nSky?\nA. red\nB. green\nC. blue\nD. black\nAnswer:",
        " C",
        "forget",
    )
    (task,) = Choices(style="continuation").build(data / "own.jsonl").tasks
    assert task.examples[1].response == " red"


def test_a_pool_weighs_samples_and_not_tasks() -> None:
    def task(name: str, role: Role = "retain") -> Task:
        return Task(name, (), (Accuracy(),), role)

    rows = {"a": [1.0, 1.0, 0.0], "b": [0.0]}
    samples = {t: [Sample(task=t, metric="accuracy", id=str(i), value=v) for i, v in enumerate(vs)] for t, vs in rows.items()}
    score = pooled_score(Results(samples), "both", [task("a"), task("b")], "accuracy")
    assert (score.task, score.value, score.n, score.higher_is_better) == ("both", 0.5, 4, True)
    assert score.low is not None
    assert score.low < 0.5 < (score.high or 0)
    empty = pooled_score(Results({}), "both", [task("a"), task("b", "forget")], "accuracy")
    assert (empty.value, empty.n, empty.higher_is_better) == (None, 0, None)


def test_an_example_that_is_there_twice_counts_twice() -> None:
    rows = [Sample(task="t", metric="accuracy", id="same", value=value) for value in (1.0, 0.0)]
    np.testing.assert_array_equal(Results({"t": rows}).values("t", "accuracy"), [1.0, 0.0])


def test_the_command_line_reaches_every_option(
    data: Path, pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "evaluate",
        str(pico_folder),
        "--suite",
        "skills",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--limit",
        "1",
    ]
    chosen = ["--options", "tasks=gsm8k,humaneval,languages", "languages=zh", "gsm8k_shots=0", "--forget", "language_zh"]
    assert main([*words, *chosen, "--allow-code-execution"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("gsm8k", "language_zh", "humaneval            pass_at_1                    0"))
    assert "language_en" not in printed
    for wrong, why in (("shots=1", "takes tasks=..."), *((w, f"--options {w}: ") for w in ("tasks=gsm9k", "gsm8k_shots=9"))):
        assert main([*words, "--overwrite", "--options", wrong]) == 2
        assert why in capsys.readouterr().err


@pytest.mark.real
def test_a_real_model_is_near_chance_on_real_questions(data_root: Path) -> None:
    """260 thousand parameters, trained on children's stories, know nothing of pathogens."""
    from expunge.models.load import load_model, load_tokenizer

    model, tokenizer = load_model(str(data_root / "stories260k"), dtype="float32"), load_tokenizer(str(data_root / "stories260k"))
    found = evaluate(model, tokenizer, suite=Wmdp(tasks=("bio",)), data=data_root / "wmdp", limit=200, quiet=True)
    score = found.get("wmdp_bio", "accuracy")
    assert score is not None
    assert score.low is not None
    assert score.low < 0.25 < (score.high or 0.0)
