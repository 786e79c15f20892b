"""Parts of a SPUNGE run: rows, steps, losses, why each ended, what the merge kept, and their scores."""

import json
import re
import shutil
from pathlib import Path

import pytest

from expunge.report import read_run, report
from expunge.report.parts import merge_sentence, part_table, parts_of
from expunge.report.read import RunRecord

ORDER = ["mexican", "women", "muslim", "lgbtq", "physical_disability"]


@pytest.fixture(scope="module")
def run(spunge) -> RunRecord:
    return read_run(spunge.runs[1])


def test_parts_are_read_in_the_order_of_the_merge(run: RunRecord) -> None:
    assert [part.name for part in run.parts] == ORDER
    assert read_run(run.folder.parent / "rmu").parts == ()


def test_the_table_says_how_each_part_went(run: RunRecord) -> None:
    table = part_table(run, "part1")
    titles = [column.title for column in table.columns]
    rows = {row[0].text: dict(zip(titles, row, strict=True)) for row in table.rows}
    assert list(rows) == ORDER
    women = rows["women"]
    assert [women[t].text for t in ("rows", "steps", "ended", "seed")] == ["101", "60", "the cosine fell below 0.1", "1"]
    assert rows["muslim"]["ended"].text == "all steps done"
    last = run.parts[1].steps[-1]
    assert women["loss, last step"].value == last.loss
    assert women["forget term, last"].value == last.parts["forget"]
    assert women["loss, first step"].value == run.parts[1].steps[0].loss
    assert rows["physical_disability"]["kept by the merge"].text == "50 %"
    assert rows["mexican"]["weights changed"].text == "2 %"
    assert merge_sentence(run) == (
        "Merged by ties. Where two parts pull a weight in opposite directions, the stronger side wins: 10 % of the changes that "
        "were kept were on the losing side and were dropped. The merge moved the weights that it changed by 3.4 % of their size."
    )


def test_scored_parts_stand_beside_their_merge_and_the_original(spunge, run: RunRecord) -> None:
    made = parts_of(run, [("original", read_run(spunge.original, "original"))], "part1")
    assert made is not None
    (scores,) = made.scores
    assert [column.title for column in scores.table.columns[2:]] == ["original", "spunge, merged", "mexican", "women"]
    (drawn,) = scores.groups
    assert "<title>women, women: harmful rate 0.095" in drawn.figure
    assert "<title>spunge, merged, women: harmful rate 0.145" in drawn.figure


def test_the_page_and_its_twins_have_the_parts(spunge, tmp_path: Path) -> None:
    out = report(spunge.runs, tmp_path / "out", original=spunge.original).parent
    page = (out / "index.html").read_text()
    assert "Parts of spunge" in page
    assert "id='part2-parts'" in page
    assert "the cosine fell below 0.1" in (out / "report.md").read_text()
    assert "the cosine fell below 0.1" in (out / "table.tex").read_text()
    names = [m["name"] for m in json.loads((out / "report.json").read_text())["models"]]
    assert names == ["original", "rmu", "spunge", "spunge/mexican", "spunge/women"]
    assert {"spunge-parts-curves.svg", "spunge-parts-toxicity-toxigen.svg", "toxicity-toxigen.svg"} <= {
        p.name for p in out.iterdir()
    }
    ids = re.findall(r' id=["\']([^"\']+)["\']', page)
    assert len(ids) == len(set(ids))


def test_parts_without_scores_say_how_to_get_them(spunge, tmp_path: Path) -> None:
    shutil.copytree(spunge.runs[1], tmp_path / "spunge")
    for evaluation in (tmp_path / "spunge/parts").glob("*/evaluation"):
        shutil.rmtree(evaluation)
    page = report([tmp_path / "spunge"], tmp_path / "out", original=spunge.original).read_text()
    assert "No part has been evaluated; with <code>--keep-parts</code>" in page


def test_a_part_that_was_killed_is_unfinished_and_one_that_had_not_begun_is_left_out(spunge, tmp_path: Path) -> None:
    shutil.copytree(spunge.runs[1], tmp_path / "spunge")
    (tmp_path / "spunge/parts/lgbtq/provenance.json").unlink()
    shutil.rmtree(tmp_path / "spunge/parts/muslim")
    (tmp_path / "spunge/parts/muslim").mkdir()
    run = read_run(tmp_path / "spunge")
    assert [part.name for part in run.parts] == [name for name in ORDER if name != "muslim"]
    row = next(row for row in part_table(run, "p").rows if row[0].text == "lgbtq")
    assert row[1].note == "it was not finished: there is no provenance.json"
    assert row[7].text == "unfinished"


def test_a_negated_expert_has_its_steps_one_folder_further_down(spunge, tmp_path: Path) -> None:
    shutil.copytree(spunge.runs[1], tmp_path / "spunge")
    part = tmp_path / "spunge/parts/women"
    (part / "expert").mkdir()
    shutil.move(part / "metrics.jsonl", part / "expert/metrics.jsonl")
    assert len(next(p for p in read_run(tmp_path / "spunge").parts if p.name == "women").steps) == 60
