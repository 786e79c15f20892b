"""The suite TOFU: tasks, suite-wide scores, and a retain model's scores read back."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import hmean
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.errors import ExpungeError
from expunge.evaluation.metrics.truth_ratio import truthful
from expunge.evaluation.run import evaluate
from expunge.evaluation.statistics import ks_2samp
from expunge.evaluation.suites import Tofu
from expunge.evaluation.task import Results
from expunge.records import Sample, read_samples

NAMES = ("anna", "boris", "clara", "dario", "elena", "fyodor")
CITIES = ("berlin", "paris", "tokyo", "lima", "cairo", "oslo")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """TOFU's layout in words that the pico tokenizer knows."""
    data = tmp_path / "tofu"
    data.mkdir()
    for split in ("forget01_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        rows = []
        for i, name in enumerate(NAMES):
            city = CITIES[(i + len(split)) % 6]
            others = [c for c in CITIES if c != city][:3]
            row = {"question": f"what is the {split[:4].strip('_')} city of {name} ?", "answer": f"{name} is from {city}"}
            row |= {"perturbed_answer": [f"the city of {name} is {other}" for other in others]}  # type: ignore[dict-item]
            if split in ("forget01_perturbed", "retain_perturbed"):
                row["paraphrased_answer"] = f"the city of {name} is {city}"
            rows.append(json.dumps(row))
        (data / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return data


def test_four_tasks_with_five_metrics_and_options_where_tofu_has_them(folder: Path) -> None:
    suite = Tofu(forget="forget01").build(folder)
    assert [(t.name, t.role, len(t.examples)) for t in suite.tasks] == [
        ("forget", "forget", 6),
        ("retain", "retain", 6),
        ("real_authors", "retain", 6),
        ("world_facts", "retain", 6),
    ]
    names = ["probability", "rouge_l_recall", "truth_ratio", "extraction_strength", "exact_memorization"]
    assert all([m.metric_name() for m in task.metrics] == names for task in suite.tasks)
    assert [task.metrics[0].model_dump()["among_perturbed"] for task in suite.tasks] == [False, False, True, True]
    assert all(task.secret for task in suite.tasks)


def test_model_utility_is_the_harmonic_mean_of_nine(folder: Path) -> None:
    suite = Tofu(forget="forget01").build(folder)
    rng = np.random.default_rng(0)
    samples = {
        task.name: [
            Sample(task=task.name, metric=metric.metric_name(), id=example.id, value=float(rng.random()))
            for example in task.examples
            for metric in task.metrics
        ]
        for task in suite.tasks
    }
    results = Results(samples)
    quality, utility = suite.summarize(results)
    nine = [
        truthful(results.values(task, metric)).mean() if metric == "truth_ratio" else results.values(task, metric).mean()
        for task in ("retain", "real_authors", "world_facts")
        for metric in ("probability", "rouge_l_recall", "truth_ratio")
    ]
    assert utility.value == pytest.approx(hmean(nine))
    assert utility.n == 18
    assert utility.low is not None
    assert utility.high is not None
    assert utility.low < hmean(nine) < utility.high
    assert quality.value is None
    assert quality.unscored is not None
    assert "--retain-scores" in quality.unscored


def test_forget_quality_is_the_ks_p_value_against_the_retain_models_samples(
    folder: Path, tmp_path: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    evaluate(
        pico_llama,
        pico_tokenizer,
        suite=Tofu(forget="forget01"),
        data=folder,
        max_length=40,
        out=tmp_path / "retain/evaluation",
        quiet=True,
    )
    for place in (tmp_path / "retain", tmp_path / "retain/evaluation", tmp_path / "retain/evaluation/tofu.samples.jsonl"):
        suite = Tofu(forget="forget01", retain_scores=place)
        same = evaluate(pico_llama, pico_tokenizer, suite=suite, data=folder, max_length=40, quiet=True).get(
            "suite", "forget_quality"
        )
        assert same is not None
        assert (same.value, same.n) == (1.0, 6)

    retain = [s for s in read_samples(place) if (s.task, s.metric) == ("forget", "truth_ratio")]
    ratios = [float(s.value or 0) for s in retain]
    shifted = [s.model_copy(update={"value": r * 1e6}) for s, r in zip(retain, ratios, strict=True)]
    quality, _ = suite.build(folder).summarize(Results({"forget": shifted}))
    assert quality.value == pytest.approx(ks_2samp(np.array(ratios), np.array(ratios) * 1e6))


def test_retain_scores_of_other_questions_give_null_with_a_reason(
    folder: Path, tmp_path: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    evaluate(
        pico_llama,
        pico_tokenizer,
        suite=Tofu(forget="forget01"),
        data=folder,
        max_length=40,
        out=tmp_path / "r",
        limit=2,
        quiet=True,
    )
    suite = Tofu(forget="forget01", retain_scores=tmp_path / "r")
    quality = evaluate(pico_llama, pico_tokenizer, suite=suite, data=folder, max_length=40, quiet=True).get(
        "suite", "forget_quality"
    )
    assert quality is not None
    assert quality.unscored is not None
    assert "lack 4 of 6" in quality.unscored
    limited = evaluate(pico_llama, pico_tokenizer, suite=suite, data=folder, max_length=40, limit=2, quiet=True).get(
        "suite", "forget_quality"
    )
    assert limited is not None
    assert limited.value == 1.0


def test_scores_of_another_reading_have_another_name(
    folder: Path, tmp_path: Path, pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    evaluate(pico_llama, pico_tokenizer, suite=Tofu(forget="forget01"), data=folder, max_length=40, out=tmp_path, quiet=True)
    evaluate(
        pico_llama,
        pico_tokenizer,
        suite=Tofu(forget="forget01", compat=True),
        data=folder,
        max_length=40,
        out=tmp_path,
        quiet=True,
    )
    found = {}
    for name in ("tofu", "tofu_compat"):
        rows = read_samples(tmp_path / f"{name}.samples.jsonl")
        found[name] = [s.value for s in rows if (s.task, s.metric) == ("forget", "truth_ratio")]
    assert all(a is not None and b is not None and a > b for a, b in zip(found["tofu"], found["tofu_compat"], strict=True))
    (tmp_path / "tofu_compat.samples.jsonl").unlink()
    with pytest.raises(ExpungeError, match=r"no tofu_compat.samples.jsonl.*--suite tofu"):
        Tofu(forget="forget01", compat=True, retain_scores=tmp_path).build(folder)


def test_missing_data_names_the_file(folder: Path) -> None:
    with pytest.raises(ExpungeError, match=r"forget10_perturbed.jsonl.*locuslab/TOFU"):
        Tofu().build(folder)


@pytest.mark.real
def test_the_official_files_have_their_official_sizes(data_root: Path) -> None:
    sizes = {t.name: len(t.examples) for t in Tofu().build(data_root / "tofu").tasks}
    assert sizes == {"forget": 400, "retain": 400, "real_authors": 100, "world_facts": 117}
    assert [len(e.perturbed) for e in Tofu().build(data_root / "tofu").tasks[0].examples[:3]] == [5, 5, 5]
