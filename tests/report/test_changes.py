"""Change of what was to be kept: by hand, paired and not, the mean, and the worst task beside it."""

from pathlib import Path

import numpy as np
import pytest

from expunge.records import Evaluation, Sample, Score
from expunge.report import read_run, report
from expunge.report.changes import change_table, changes, mean_interval
from expunge.report.latex import latex
from expunge.report.read import RunRecord
from expunge.report.tables import markdown

GOOD = [1.0] * 60 + [0.0] * 40


def model(name: str, values: dict[str, list[float]], forgotten: str | None = None, samples: bool = True) -> RunRecord:
    scores, rows = [], []
    for task, found in values.items():
        mean = float(np.mean(found))
        half = 1.96 * (mean * (1 - mean) / len(found)) ** 0.5
        scores.append(
            Score(task=task, metric="accuracy", value=mean, low=mean - half, high=mean + half, n=len(found),
                  higher_is_better=task != forgotten)
        )  # fmt: skip
        rows += [Sample(task=task, metric="accuracy", id=f"{task}{i}", value=v) for i, v in enumerate(found)]
    evaluation = Evaluation(suite="s", artifact=name, seconds=1.0, scores=tuple(scores))
    return RunRecord(name=name, folder=name, evaluations=(evaluation,), samples={"s": tuple(rows)} if samples else {})


ORIGINAL = model("original", {"a": GOOD, "b": GOOD, "c": GOOD})
LOST = [0.0] * 30 + GOOD[30:]


def test_the_mean_hides_the_task_that_collapsed_and_the_worst_names_it() -> None:
    run = model("run", {"a": GOOD, "b": LOST, "c": GOOD})
    found = changes("s", [ORIGINAL, run], ORIGINAL)
    assert [score.value for score in found.after["run"]] == [0.0, pytest.approx(-0.3), 0.0]
    assert found.mean("run").value == pytest.approx(-0.1)
    asked, worst = found.worst("run")
    assert (asked.task, worst.value) == ("b", pytest.approx(-0.3))
    assert found.sentence(["run"]) == "The mean change over 3 tasks to keep is −0.100, the worst change of one is −0.300 (B)."
    rows = change_table(found).rows
    assert [row[3].text for row in rows[:3]] == ["−0.100", "−0.300", "B"]


def test_pairing_by_sample_is_narrower_than_two_independent_intervals() -> None:
    paired = changes("s", [model("run", {"a": LOST, "b": GOOD})], ORIGINAL).after["run"][0]
    apart = changes("s", [model("run", {"a": LOST, "b": GOOD}, samples=False)], ORIGINAL)
    alone = apart.after["run"][0]
    assert paired.value == pytest.approx(alone.value)
    assert paired.high - paired.low < alone.high - alone.low
    assert apart.unpaired == ("A", "B")
    assert "Not paired by sample: A, B." in change_table(apart).caption


def test_independent_intervals_are_joined_from_their_own_ends() -> None:
    """Newcombe's method 10 by hand: 0.6 (0.50398 to 0.69602) before, 0.3 (0.21018 to 0.38982) after."""
    score = changes("s", [model("run", {"a": LOST, "b": GOOD}, samples=False)], ORIGINAL).after["run"][0]
    assert score.low == pytest.approx(-0.3 - np.hypot(0.08982, 0.09602), abs=1e-4)
    assert score.high == pytest.approx(-0.3 + np.hypot(0.08982, 0.09602), abs=1e-4)


def test_the_interval_of_a_mean_of_answers_is_that_of_resampling() -> None:
    rng = np.random.default_rng(1)
    values = np.array([-1.0] * 30 + [0.0] * 65 + [1.0] * 5)
    draws = values[rng.integers(0, 100, (4000, 100))].mean(axis=1)
    assert mean_interval(values) == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=0.011)
    other = rng.normal(size=300)
    draws = other[rng.integers(0, 300, (4000, 300))].mean(axis=1)
    assert mean_interval(other) == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=0.02)
    assert mean_interval(np.array([1.0])) is None


def test_a_mean_over_fewer_tasks_is_not_given_for_one_over_all() -> None:
    found = changes("s", [model("run", {"a": GOOD, "c": GOOD})], ORIGINAL)
    assert found.mean("run").value is None
    assert "lacks B" in (found.mean("run").unscored or "")
    assert found.worst("run")[1].value == 0.0


def test_what_a_run_was_to_forget_counts_neither_in_its_mean_nor_as_its_worst() -> None:
    run = model("run", {"a": LOST, "b": GOOD, "c": GOOD}, forgotten="a")
    found = changes("s", [run], ORIGINAL)
    assert found.mean("run").value == 0.0
    assert found.worst("run")[0].task != "a"
    cells = [row[3] for row in change_table(found).rows]
    assert cells[0].value == 0.0
    assert "counts neither in its mean nor as its worst" in change_table(found).caption
    assert cells[3].note == "was to be forgotten"


def test_other_samples_are_not_compared() -> None:
    run = model("run", {"a": LOST, "b": GOOD, "c": GOOD})
    renamed = tuple(s.model_copy(update={"id": f"x{s.id}"}) for s in run.samples["s"])
    found = changes("s", [run.model_copy(update={"samples": {"s": renamed}})], ORIGINAL)
    assert found.after["run"][0].unscored == "run and original were scored on different samples"


def test_a_pool_of_tasks_is_paired_by_the_samples_of_its_members() -> None:
    def pooled(name: str, law: list[float]) -> RunRecord:
        record = model(name, {"mmlu_law": law, "mmlu_art": GOOD, "gsm8k": GOOD})
        score = Score(task="mmlu", metric="accuracy", value=float(np.mean(law + GOOD)), n=200, higher_is_better=True)
        evaluation = record.evaluations[0]
        return record.model_copy(update={"evaluations": (evaluation.model_copy(update={"scores": (*evaluation.scores, score)}),)})

    before = pooled("original", GOOD)
    found = changes("s", [pooled("run", LOST)], before)
    assert [asked.task for asked in found.asked] == ["gsm8k", "mmlu"]
    assert found.after["run"][1].value == pytest.approx(-0.15)
    assert found.after["run"][1].n == 200
    assert found.unpaired == ()


def test_where_nothing_was_lost_the_sentence_says_so() -> None:
    runs = [model(name, {"a": GOOD, "b": GOOD, "c": GOOD}) for name in ("one", "two")]
    assert changes("s", runs, ORIGINAL).sentence(["one", "two"]) == "None of the 3 tasks to keep lost anything in any run."


def test_one_task_to_keep_needs_no_table() -> None:
    assert changes("s", [model("run", {"a": LOST})], model("original", {"a": GOOD})) is None


def test_the_report_shows_the_collapse_beside_the_mean(spunge, tmp_path: Path) -> None:
    out = report(spunge.runs, tmp_path / "out", original=spunge.original).parent
    page, said = (out / "index.html").read_text(), (out / "report.md").read_text()
    assert "the worst change of one is −0.205 (GSM8K, spunge)" in page
    assert "id='spunge_general-changes'" in page
    row = next(line for line in said.splitlines() if line.startswith("| Worst of all | task"))
    assert row.endswith("| ARC: easy | GSM8K |")
    original, run = read_run(spunge.original, "original"), read_run(spunge.runs[1])
    found = changes("spunge_general", [original, run], original)
    assert all(score.low is not None for score in found.after["spunge"])
    for write in (markdown, latex):
        assert "GSM8K" in write(change_table(found))
