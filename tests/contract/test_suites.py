"""Every suite of the closed list: what it says that it scores is what it scores, and missing data is one helpful sentence."""

import gzip
import json
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from expunge.cli.evaluate import Evaluate
from expunge.data.corpora.mmlu import SUBJECTS
from expunge.errors import ExpungeError
from expunge.evaluation.explain import suite_text
from expunge.evaluation.metrics import METRICS, OVERALL, Metric
from expunge.evaluation.metrics.membership import MembershipMetric
from expunge.evaluation.suites import (
    SUITES,
    Arc,
    Behavior,
    Choices,
    Copyright,
    Custom,
    Lab,
    Membership,
    Memorization,
    Mmlu,
    Muse,
    Skills,
    SuiteSpec,
    Tofu,
    ToxicCompletions,
    Truthfulness,
    Wmdp,
    built,
)
from expunge.evaluation.suites.base import Scored
from expunge.evaluation.task import Results, Suite

CHOICES = ["red", "green", "blue", "black"]
FACT = {"prompt": "who is anna ?", "response": "a baker", "perturbed": ["a nurse"]}
ASKED = {"question": "which color ?", "choices": CHOICES, "answer": 2}


def write(path: Path, rows: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tofu(root: Path) -> list[Suite]:
    row = {"question": "who ?", "answer": "anna", "paraphrased_answer": "it is anna", "perturbed_answer": ["boris"]}
    for split in ("forget10", "retain", "real_authors", "world_facts"):
        write(root / f"{split}_perturbed.jsonl", [row])
    return [Tofu().build(root)]


def muse(root: Path) -> list[Suite]:
    for about in ("forget", "retain"):
        for kind in ("qa", "qa_icl"):
            write(root / f"knowmem/{about}_{kind}.jsonl", [{"question": "who ?", "answer": "anna"}])
    write(root / "verbmem/forget.jsonl", [{"prompt": "once", "gt": "upon a time"}])
    for split in ("forget", "holdout"):
        write(root / f"privleak/{split}.jsonl", [{"text": f"once {split}"}])
    for part in ("scal", "sust"):
        write(root / f"{part}/forget_1.jsonl", [{"text": "once upon a time"}])
    return [Muse(parts=("scal_1", "sust_1")).build(root)]


def lab(root: Path) -> list[Suite]:
    root.mkdir(parents=True)
    (root / "world.json").write_text(json.dumps({"rude_words": ["blurky"]}))
    for name in ("forget", "retain", "public", "never_known"):
        write(root / f"data/facts/{name}.jsonl", [FACT])
    for name in ("skills/arithmetic", "skills/strings", "languages/tok"):
        write(root / f"data/{name}/test.jsonl", [FACT])
    for name in ("hazard/bio", "general"):
        write(root / f"data/{name}/questions.jsonl", [ASKED])
    for name in ("seen", "unseen", "normal"):
        write(root / f"data/behavior/{name}.jsonl", [FACT])
    return [Lab().build(root)]


def memorization(root: Path) -> list[Suite]:
    write(root / "forget.jsonl", [FACT])
    write(root / "raw.jsonl", [{"text": "once upon a time"}])
    return [Memorization(retain="forget.jsonl").build(root), Memorization(forget="raw.jsonl").build(root)]


def membership(root: Path) -> list[Suite]:
    write(root / "forget.jsonl", [FACT])
    write(root / "holdout.jsonl", [{"prompt": "who is boris ?", "response": "a nurse"}])
    return [Membership(gradnorm=True).build(root)]


def custom(root: Path) -> list[Suite]:
    write(root / "mine.jsonl", [FACT])
    metrics = [{"name": name, **NEEDED.get(name, {})} for name in METRICS]
    file = {
        "tasks": [{"name": name, "data": "mine.jsonl", "metrics": metrics} for name in ("mine", "other")],
        "membership": {"forget": "mine", "holdout": "other"},
        "model_utility": [{"task": "mine", "metric": "probability"}],
        "forget_quality": "mine",
    }
    (root / "suite.yaml").write_text(json.dumps(file))
    return [Custom().build(root / "suite.yaml")]


JUDGE = {"judge": {"kind": "keywords", "words": ["blurky"]}}
NEEDED: dict[str, dict[str, object]] = {
    "harmful_rate": {"words": ["blurky"]},
    "similarity": {"before": "earlier.samples.jsonl"},
    **dict.fromkeys(("toxicity", "toxic_rate", "expected_maximum_toxicity", "toxicity_probability", "truthful_rate"), JUDGE),
}


def wmdp(root: Path) -> list[Suite]:
    for domain in ("bio", "chem", "cyber"):
        write(root / f"{domain}-questions.jsonl", [ASKED])
    return [Wmdp().build(root)]


def toxicity(root: Path) -> list[Suite]:
    (root / "toxigen").mkdir(parents=True)
    rows = "text,target_group,toxicity_ai,toxicity_human\nit rains,women,1.0,2.0\n"
    (root / "toxigen/annotated_test.csv").write_text(rows)
    write(
        root / "real_toxicity_prompts/prompts.jsonl",
        [{"prompt": {"text": "The rain"}, "continuation": {"text": " falls"}, "challenging": True}],
    )
    return [ToxicCompletions(fluency="a-model", draws=2).build(root)]


def skills(root: Path) -> list[Suite]:
    write(root / "gsm8k/test.jsonl", [{"question": "What is 5?", "answer": "It is.\n#### 5"}])
    write(root / "mbpp/mbpp.jsonl", [{"task_id": 11, "text": "Write f.", "code": "f = 1", "test_list": ["assert f"]}])
    (root / "humaneval").mkdir()
    function = {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n", "entry_point": "f"}
    rows = json.dumps({**function, "test": "def check(f):\n    assert f() == 1"})
    (root / "humaneval/HumanEval.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    answers = [{"text": "Anna", "answer_start": 0}]
    passage = {"context": "Anna did.", "qas": [{"id": "a", "question": "Who?", "answers": answers}]}
    (root / "xquad").mkdir()
    (root / "xquad/xquad.en.json").write_text(json.dumps({"data": [{"paragraphs": [passage]}]}))
    mmlu(root / "mmlu")
    return [Skills(languages=("en",), mmlu_shots=1).build(root)]


def mmlu(root: Path) -> list[Suite]:
    for split in ("dev", "test"):
        (root / split).mkdir(parents=True)
        for subject in SUBJECTS:
            (root / split / f"{subject}_{split}.csv").write_text(f"which {split}?,{','.join(CHOICES)},B\n")
    return [Mmlu(shots=1).build(root)]


def arc(root: Path) -> list[Suite]:
    rows = [{"question": "which ?", "choices": {"text": CHOICES, "label": list("ABCD")}, "answerKey": "B"}]
    for level in ("Easy", "Challenge"):
        write(root / f"ARC-{level}-Test.jsonl", rows)
    return [Arc().build(root)]


def truthfulness(root: Path) -> list[Suite]:
    (root / "truthfulqa").mkdir(parents=True)
    columns = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source"
    (root / "truthfulqa/TruthfulQA.csv").write_text(f"{columns}\nAdversarial,Myths,what ?,nothing,nothing; fine,all,s\n")
    row = {"knowledge": "k", "question": "q ?", "right_answer": "r", "hallucinated_answer": "h"}
    write(root / "halueval/qa_data.json", [row])
    return [Truthfulness(judge="os:getenv", style=style).build(root) for style in ("model", "qa")]


def behavior(root: Path) -> list[Suite]:
    for name in ("seen", "unseen", "normal"):
        write(root / f"{name}.jsonl", [FACT])
    write(root / "gsm8k/test.jsonl", [{"question": "What is 5?", "answer": "It is.\n#### 5"}])
    more = {"toxicity": "detoxify", "before": root, "fluency": "a-model", "gsm8k": True}
    return [Behavior(words=("blurky",), **more).build(root)]  # type: ignore[arg-type]


def copyright(root: Path) -> list[Suite]:
    write(root / "forget.jsonl", [{"title": "A storm", "text": "It rained. The river rose."}])
    return [Copyright().build(root), Copyright(fluency="a-model").build(root)]


def choices(root: Path) -> list[Suite]:
    write(root / "own.jsonl", [ASKED])
    return [Choices(style=style).build(root / "own.jsonl") for style in ("letters", "continuation")]


BUILT: dict[str, Callable[[Path], list[Suite]]] = {
    made.__name__: made
    for made in (
        tofu,
        muse,
        lab,
        memorization,
        membership,
        custom,
        wmdp,
        toxicity,
        skills,
        mmlu,
        arc,
        choices,
        truthfulness,
        behavior,
        copyright,
    )
}
OUTSIDE = ("lm_eval", "spunge_general")
"""Scored by lm-eval, which says itself what (tests/evaluation/test_lm_eval.py)."""


def test_every_suite_is_looked_at() -> None:
    assert {*BUILT, *OUTSIDE} == set(SUITES)


def fits(name: str, pattern: str) -> bool:
    """Capitals stand for anything."""
    return fnmatchcase(name, re.sub("[A-Z]+", "*", pattern))


def name_of(metric: str | Metric) -> str:
    return metric if isinstance(metric, str) else metric.metric_name()


@pytest.mark.parametrize("name", BUILT)
def test_what_a_suite_says_it_scores_is_what_it_scores(name: str, tmp_path: Path) -> None:
    said = SUITES[name].scored
    reached: set[tuple[Scored, str | Metric]] = set()

    def place(task: str, metric: str, higher: bool | None, *, whole: bool) -> None:
        """Notes who says so; the direction has to be right where the role decides it."""
        found = [
            (part, known)
            for part in said
            for known in part.metrics
            if any(fits(task, pattern) for pattern in part.tasks.split(", ")) and fits(metric, name_of(known))
        ]
        assert found, f"{task} {metric} is scored and not said"
        reached.update(found)
        if whole or task == "suite":
            return
        directions = {
            (METRICS[known].model_construct() if isinstance(known, str) else known).higher_is_better(part.role)
            for part, known in found
        }
        assert name == "custom" or directions == {higher}, (task, metric)

    for suite in BUILT[name](tmp_path / name):
        for task in suite.tasks:
            for metric in task.metrics:
                if metric.stands_alone:
                    place(task.name, metric.metric_name(), metric.higher_is_better(task.role), whole=False)
        for score in suite.summarize(Results({})):
            place(score.task, score.metric, score.higher_is_better, whole=score.task == "suite")
    every = {(part, known) for part in said for known in part.metrics}
    attacks = {n for n, metric in METRICS.items() if issubclass(metric, MembershipMetric)}
    unmet = {(part.tasks, name_of(known)) for part, known in every - reached} - {("TASK", attack) for attack in attacks}
    assert not unmet, "said and never scored"


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES.keys())
def test_every_suite_says_where_its_data_is_from_what_it_scores_and_how_to_set_it(suite: type[SuiteSpec]) -> None:
    text = suite_text(suite, Evaluate.model_fields)
    words = " ".join(text.split())
    assert suite.__dict__["__doc__"]
    assert all(" ".join(part.split()) in words for part in (suite.__doc__ or "", suite.source, suite.layout))
    for part in suite.scored:
        for metric in map(name_of, part.metrics):
            known = {*METRICS, *OVERALL, "ATTACK", "ATTACK_relative_difference"}
            assert metric in known
            assert metric in words
    for field, info in suite.model_fields.items():
        if field != "name":
            flag = f"--{field.replace('_', '-')} " if field in Evaluate.model_fields else f"--options {field}=..."
            assert flag in text
            assert info.description


@pytest.mark.parametrize("suite", [s for name, s in SUITES.items() if name not in OUTSIDE], ids=lambda s: s.suite_name())
def test_missing_data_is_one_sentence_with_a_file_and_what_to_do(suite: type[SuiteSpec], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for place in (empty, tmp_path / "nowhere"):
        with pytest.raises(ExpungeError) as caught:
            built(suite(), place)
        message = str(caught.value)
        assert "\n" not in message
        assert str(place) in message
        assert re.search(r"\.jsonl?|\.csv|YAML|hub|expunge lab", message.replace(str(place), ""))
        assert ";" in message, "what to do"
        assert suite.layout in message or "expunge lab" in message or f"the suite {suite.suite_name()} needs" in message
