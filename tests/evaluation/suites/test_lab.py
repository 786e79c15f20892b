"""The suite of the invented world, on a small world written by hand."""

import json
from pathlib import Path

import pytest
from scipy.stats import hmean
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.errors import ExpungeError
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites import Lab
from expunge.records import read_samples

CITIES = ("berlin", "paris", "tokyo", "lima", "cairo", "oslo")


def write(file: Path, rows: list[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    root = tmp_path / "lab"
    people = {"forget": ("anna",), "retain": ("boris", "clara"), "public": ("dario",), "never_known": ("elena",)}
    for name, who in people.items():
        rows: list[dict[str, object]] = [
            {
                "prompt": f"{ask} is {person} from ?",
                "response": f"{person} is from {CITIES[i]}",
                "paraphrases": [f"the city of {person} is {CITIES[i]}", f"{person} was born in {CITIES[i]}"],
                "perturbed": [f"the city of {person} is {CITIES[(i + k) % 6]}" for k in (1, 2)],
                "attributes": {"person": person},
            }
            for person in who
            for i, ask in enumerate(("what", "where", "who"))
        ]
        write(root / f"data/facts/{name}.jsonl", rows)
    for name in ("arithmetic", "strings"):
        write(root / f"data/skills/{name}/test.jsonl", [{"prompt": f"{name} one plus two", "response": "three"}] * 2)
    for name in ("b", "a"):
        write(root / f"data/languages/{name}/test.jsonl", [{"prompt": f"{name} red dog", "response": "blue cat"}])
    question = {"prompt": "the river is", "choices": ["red", "green", "blue", "black"], "answer": 2}
    write(root / "data/hazard/fumes/questions.jsonl", [question])
    write(root / "data/general/questions.jsonl", [question, {**question, "answer": 0}])
    for name in ("seen", "unseen", "normal"):
        rows = [{"prompt": f"what of {who}", "response": reply} for who in ("anna", "boris") for reply in ("bird", "fish", "dog")]
        write(root / f"data/behavior/{name}.jsonl", rows)
    (root / "world.json").write_text(json.dumps({"seed": 0, "rude_words": ["goose", "bird"]}))
    return root


def test_every_part_of_the_lab_is_a_task(lab: Path) -> None:
    suite = Lab().build(lab)
    found = {task.name: (task.role, [m.metric_name() for m in task.metrics], len(task.examples)) for task in suite.tasks}
    about = ["probability", "extraction_strength", "accuracy", "truth_ratio"]
    assert found == {
        "facts_forget": ("forget", [*about, "reciprocal_rank", "mia_min_k"], 3),
        "facts_retain": ("retain", about, 6),
        "facts_public": ("retain", about, 3),
        "facts_never_known": ("control", about, 3),
        "arithmetic": ("retain", ["accuracy"], 2),
        "strings": ("retain", ["accuracy"], 2),
        "language_a": ("retain", ["accuracy"], 1),
        "language_b": ("retain", ["accuracy"], 1),
        "hazard_fumes": ("neutral", ["accuracy"], 1),
        "general": ("retain", ["accuracy"], 2),
        "behavior_seen": ("neutral", ["harmful_rate"], 2),
        "behavior_unseen": ("neutral", ["harmful_rate"], 2),
        "behavior_normal": ("neutral", ["harmful_rate"], 2),
    }
    assert not any(task.secret for task in suite.tasks)


def test_a_prompt_with_several_replies_counts_once(lab: Path) -> None:
    task = Lab().build(lab).tasks[-1]
    assert [(e.prompt, e.response) for e in task.examples] == [("what of anna", "bird"), ("what of boris", "bird")]


def test_another_thing_to_forget_turns_its_direction_round_and_leaves_the_utility(
    lab: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    evaluation = evaluate(pico_llama, pico_tokenizer, suite=Lab(forget=("language_a",)), data=lab, quiet=True)
    assert [evaluation.get(task, "accuracy").higher_is_better for task in ("language_a", "language_b", "facts_forget")] == [  # type: ignore[union-attr]
        False,
        True,
        True,
    ]
    with pytest.raises(ExpungeError, match="no task language_z"):
        Lab(forget=("language_z",)).build(lab)


def test_scores_and_shown_answers(
    lab: Path, tmp_path: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    evaluation = evaluate(pico_llama, pico_tokenizer, suite="lab", data=lab, out=tmp_path / "out", quiet=True)
    utility, quality = evaluation.get("suite", "model_utility"), evaluation.get("suite", "forget_quality")
    kept = [
        score.value
        for score in evaluation.scores
        if score.task in ("facts_retain", "facts_public", "arithmetic", "strings", "language_a", "language_b", "general")
        and score.metric in ("probability", "truth_ratio", "accuracy")
    ]
    assert len(kept) == 11
    assert utility is not None
    assert utility.value == pytest.approx(hmean([float(value or 0) for value in kept]))
    assert quality is not None
    assert quality.unscored is not None
    assert "gold" in quality.unscored
    samples = list(read_samples(tmp_path / "out/lab.samples.jsonl"))
    shown = [s.text for s in samples if s.task == "facts_forget" and s.text]
    assert [text["expected"] for text in shown] == ["anna is from berlin", "anna is from paris", "anna is from tokyo"]
    assert all("generated" in text for text in shown)

    gold = evaluate(pico_llama, pico_tokenizer, suite=Lab(retain_scores=tmp_path / "out"), data=lab, quiet=True)
    quality = gold.get("suite", "forget_quality")
    assert quality is not None
    assert (quality.value, quality.n) == (1.0, 3)


def test_a_folder_that_is_no_lab_says_how_to_make_one(lab: Path, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="expunge lab"):
        Lab().build(tmp_path)
    (lab / "world.json").write_text("{}")
    with pytest.raises(ExpungeError, match="rude_words"):
        Lab().build(lab)
