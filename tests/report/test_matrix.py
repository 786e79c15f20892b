"""Forget-one-keep-others matrices: drops by hand, intervals, what is a row, what is drawn, and their place in a report."""

import re
from pathlib import Path

import numpy as np
import pytest

from expunge.errors import ExpungeError
from expunge.records import Evaluation, Sample, Score, write_json, write_samples
from expunge.report import report
from expunge.report.matrix import KNOWLEDGE, TaskMetric, forgetting, heat_map, matrices, matrix_table, relative_drops
from expunge.report.read import Artifact, RunRecord, read_run
from expunge.report.tables import html, markdown

LANGUAGES = ("en", "de", "es")
PUBLISHED = {"en": (0.61, 0.07, 0.04), "de": (0.26, 0.80, 0.11), "es": (0.49, 0.29, 0.86)}
"""Relative drops of KSD on llama-3-8b (arXiv 2503.21730), forgotten by tested."""
N = 100


def run(folder: Path, right: dict[str, float], forgotten: str | None = None) -> RunRecord:
    """A run that answers the first `right[task]` * N of N questions of each task."""
    folder.mkdir()
    samples, scores = [], []
    for task, share in right.items():
        values = [float(i < round(share * N)) for i in range(N)]
        for metric in ("f1", "prompt_cut"):
            samples += [Sample(task=task, metric=metric, id=f"{task}{i}", value=v) for i, v in enumerate(values)]
            scores.append(
                Score(
                    task=task,
                    metric=metric,
                    value=float(np.mean(values)),
                    n=N,
                    higher_is_better=metric == "f1" and task != forgotten,
                )
            )
    write_samples(folder / "skills.samples.jsonl", samples)
    write_json(folder / "skills.json", Evaluation(suite="skills", artifact=str(folder), seconds=1.0, scores=tuple(scores)))
    return read_run(folder)


@pytest.fixture
def original(tmp_path: Path) -> RunRecord:
    return run(tmp_path / "original", dict.fromkeys((f"language_{name}" for name in LANGUAGES), 1.0))


@pytest.fixture
def runs(tmp_path: Path) -> list[RunRecord]:
    return [
        run(
            tmp_path / f"forgets_{row}",
            {f"language_{column}": 1 - drop for column, drop in zip(LANGUAGES, drops, strict=True)},
            f"language_{row}",
        )
        for row, drops in PUBLISHED.items()
    ]


def test_drops_are_those_of_the_runs(original: RunRecord, runs: list[RunRecord]) -> None:
    matrix = relative_drops(original, forgetting(runs, "skills"), "skills")
    assert matrix.columns == tuple(TaskMetric(f"language_{name}", "f1") for name in LANGUAGES)
    values = [[score.value for score in scores] for scores in matrix.rows.values()]
    np.testing.assert_allclose(np.array(values, dtype=float), list(PUBLISHED.values()))
    assert matrix.sentence() == (
        "Each forgotten task drops by at least 61 % (Language: en); "
        "the largest drop elsewhere is 49 % (Language: en when Language: es is forgotten)."
    )


def test_the_drop_is_relative_and_a_gain_is_negative(tmp_path: Path) -> None:
    before, after = run(tmp_path / "a", {"x": 0.5, "y": 0.5}), run(tmp_path / "b", {"x": 0.2, "y": 0.6}, "x")
    ((x, y),) = relative_drops(before, {"x": after}, "skills").rows.values()
    assert (x.value, y.value) == (pytest.approx(0.6), pytest.approx(-0.2))


def test_intervals_are_paired(tmp_path: Path) -> None:
    """The after-samples are a part of the before-samples; unpaired resampling would give a wider interval."""
    before, after = run(tmp_path / "a", {"x": 0.5}), run(tmp_path / "b", {"x": 0.25}, "x")
    ((x,),) = relative_drops(before, {"x": after}, "skills").rows.values()
    rng = np.random.default_rng(1)
    kept = np.array([[float(i < 50), float(i < 25)] for i in range(N)])
    draws = [1 - d[:, 1].sum() / d[:, 0].sum() for d in (kept[rng.integers(0, N, N)] for _ in range(4000))]
    assert x.low == pytest.approx(np.quantile(draws, 0.025), abs=0.02)
    assert x.high == pytest.approx(np.quantile(draws, 0.975), abs=0.02)


def test_only_shared_samples_count(tmp_path: Path, original: RunRecord) -> None:
    limited = run(tmp_path / "limited", {"language_en": 0.5, "language_de": 1.0, "language_es": 1.0}, "language_en")
    few = tuple(s for s in limited.samples["skills"] if int(s.id.removeprefix("language_")[2:]) < 50)
    ((en, *_),) = relative_drops(
        original, {"language_en": limited.model_copy(update={"samples": {"skills": few}})}, "skills"
    ).rows.values()
    assert (en.value, en.n) == (0.0, 50)


def test_nothing_to_lose_is_a_reason_and_no_number(tmp_path: Path) -> None:
    before, after = run(tmp_path / "a", {"x": 0.0, "y": 1.0}), run(tmp_path / "b", {"x": 0.0, "y": 1.0}, "y")
    ((y, x),) = relative_drops(before, {"y": after}, "skills").rows.values()
    assert (x.value, y.value) == (None, 0.0)
    assert "nothing to lose" in (x.unscored or "")


def test_a_run_is_a_row_when_it_forgot_one_task(tmp_path: Path, runs: list[RunRecord]) -> None:
    none = run(tmp_path / "none", {"language_en": 1.0})
    found = forgetting([none, *runs, runs[0]], "skills")
    assert list(found) == [f"language_{name}" for name in LANGUAGES]
    assert found["language_en"] is runs[0]


def test_columns_and_metric_may_be_chosen(original: RunRecord, runs: list[RunRecord]) -> None:
    found = forgetting(runs, "skills")
    matrix = relative_drops(original, found, "skills", tasks=["language_es"], metric="prompt_cut")
    assert matrix.columns == (TaskMetric("language_es", "prompt_cut"),)
    with pytest.raises(ExpungeError, match=r"no samples of the task language_fr .* it has them of language_en, language_de"):
        relative_drops(original, found, "skills", tasks=["language_fr"])
    with pytest.raises(ExpungeError, match="expunge evaluate --suite lab"):
        relative_drops(original, found, "lab")


def test_the_heat_map_frames_what_was_to_go_and_says_every_number(original: RunRecord, runs: list[RunRecord]) -> None:
    svg = heat_map(relative_drops(original, forgetting(runs, "skills"), "skills"))
    assert svg.count("<title>Language:") == 9
    assert "Language: es forgotten, Language: en tested (F1): drop 0.49 (" in svg
    assert all(re.search(rf">{drop:.2f}<", svg) for drops in PUBLISHED.values() for drop in drops)
    assert svg.count("stroke-width: 2") >= 3


def test_the_table_has_intervals_in_every_form(original: RunRecord, runs: list[RunRecord]) -> None:
    table = matrix_table(relative_drops(original, forgetting(runs, "skills"), "skills"))
    assert "forgets_<wbr>de" in str(html(table))
    assert "0.80" in markdown(table)
    assert all(cell.interval for row in table.rows for cell in row[2:])


def test_a_report_over_such_runs_has_the_matrix(tmp_path: Path, original: RunRecord, runs: list[RunRecord]) -> None:
    page = report([original.folder, *(r.folder for r in runs)], tmp_path / "report").read_text().replace("\u00a0", " ")
    assert "Forget one, keep the others" in page
    assert "the largest drop elsewhere is 49 %" in page
    assert (tmp_path / "report" / "skills-matrix.svg").is_file()
    assert "rows were forgotten" in (tmp_path / "report" / "report.md").read_text()
    assert "relative drop" in page
    assert "Forgotten and kept" not in page  # the suite has no score of the whole, so no table of them without columns
    single = report([original.folder, runs[0].folder], tmp_path / "single").read_text()
    assert "Forget one, keep the others" not in single


def made_by(method: str, run: RunRecord) -> RunRecord:
    artifact = Artifact(kind="guard", method={"name": method}, family="guarding")
    return run.model_copy(update={"artifact": artifact, "name": f"{method} {run.name}"})


def test_each_method_has_a_matrix_of_its_own(original: RunRecord, runs: list[RunRecord]) -> None:
    both = [made_by(method, run) for run in runs[::-1] for method in ("key_space", "neuron_adjust")]
    one, other = matrices(original, both, "skills")
    assert (one.name, other.name) == ("skills-key_space-matrix", "skills-neuron_adjust-matrix")
    assert list(one.rows) == [f"language_{name}" for name in LANGUAGES]  # as the suite has them, not as the runs were given
    assert one.names["language_de"] == "key_space forgets_de"
    assert matrix_table(other).caption.startswith("neuron_adjust: relative drop")
    (alone,) = matrices(original, [*both[::2], both[1]], "skills")
    assert (alone.name, alone.method) == ("skills-matrix", None)
    (mixed,) = matrices(original, [both[0], both[3]], "skills")  # no method forgot two tasks, all together did
    assert list(mixed.rows) == ["language_de", "language_es"]
    assert matrices(original, both[:2], "skills") == ()


def test_metrics_of_knowledge_exist() -> None:
    from expunge.evaluation.metrics import METRICS

    assert set(METRICS) >= KNOWLEDGE
