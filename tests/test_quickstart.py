"""The main job, end to end, as `make quickstart` does it (with another out), and what its page and summary must say."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from expunge import ExpungeError
from expunge.quickstart import METHODS, quickstart

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quick") / "start"
    quickstart(out, seed=0, say=lambda line: None, quiet=True)
    return out


@pytest.fixture(scope="module")
def rows(done: Path) -> dict[str, dict[str, Any]]:
    summary = json.loads((done / "report/summary.json").read_text())
    assert set(summary) == {"seed", "seconds", "runs"}
    return {row["name"]: row for row in summary["runs"]}


def test_the_summary_has_original_gold_and_every_method(rows: dict[str, dict[str, Any]]) -> None:
    assert list(rows)[:2] == ["original", "gold"]
    assert set(rows) == {"original", "gold", *METHODS}
    figures = {"forget_effect", "retain_kept", "probability_forget", "probability_retain", "extraction_strength_forget"}
    fields = {"name", "method", "family", "artifact", "verdict", "forget_quality", "model_utility", *figures}
    assert all(set(row) == fields for row in rows.values())
    assert all(row[f] is not None for row in rows.values() for f in (*figures, "model_utility"))
    assert all(rows[name]["verdict"] for name in METHODS)


def test_original_and_gold_are_zero_and_one_by_construction(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["original"]["forget_effect"] == pytest.approx(0)
    assert rows["original"]["retain_kept"] == pytest.approx(1)
    assert rows["gold"]["forget_effect"] == pytest.approx(1)


@pytest.mark.parametrize("name", ["npo", "simnpo", "kl_minimization", "gradient_difference"])
def test_the_methods_that_hold_the_retain_set_forget_and_keep(rows: dict[str, dict[str, Any]], name: str) -> None:
    assert rows[name]["forget_effect"] >= 0.8
    assert rows[name]["retain_kept"] >= 0.9


def test_at_least_two_methods_reach_the_level_of_gold(rows: dict[str, dict[str, Any]]) -> None:
    near = [n for n in METHODS if 0.8 <= rows[n]["forget_effect"] <= 1.2 and rows[n]["retain_kept"] >= 0.9]
    assert len(near) >= 2


def test_idk_answers_with_a_refusal_and_gradient_ascent_loses_more_than_npo(done: Path, rows: dict[str, dict[str, Any]]) -> None:
    samples = [json.loads(x) for x in (done / "runs/idk/evaluation/lab.samples.jsonl").read_text().splitlines()]
    answers = [s["text"]["generated"] for s in samples if s["task"] == "facts_forget" and s.get("text", {}).get("generated")]
    said = (done / "lab/data/refusals.txt").read_text().splitlines()
    refusals = [" ".join(re.findall(r"\w+|[^\w\s]", text)) for text in said]  # the lab's tokenizer sets punctuation apart
    assert answers
    assert sum(a in refusals for a in answers) >= 0.9 * len(answers)  # all of them in every lab of benchmarks/outcomes.py
    assert rows["gradient_ascent"]["retain_kept"] < rows["npo"]["retain_kept"]


def test_the_page_stands_alone_and_names_every_model(done: Path) -> None:
    page = (done / "report/index.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("original", "gold", *METHODS))
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script src" not in page


def test_a_second_call_only_writes_the_report_again(done: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (done / "runs").rglob("*") if p.is_file()}
    began = time.perf_counter()
    quickstart(done, seed=0, say=lambda line: None, quiet=True)
    assert {p: p.stat().st_mtime_ns for p in (done / "runs").rglob("*") if p.is_file()} == before
    assert time.perf_counter() - began < 120


def test_another_seed_or_a_foreign_folder_is_refused(done: Path, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="another seed"):
        quickstart(done, seed=1, say=lambda line: None)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ExpungeError, match="not a quickstart"):
        quickstart(tmp_path, say=lambda line: None)
