"""Several suites at a glance, and runs that differ by their seed."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from expunge.records import write_json
from expunge.report import read_run, report
from expunge.report.gather import gather
from expunge.report.overview import overview
from expunge.report.sections import section
from expunge.report.seeds import seed_groups, seed_table


def sections(spunge):
    original, runs = read_run(spunge.original, "original"), [read_run(r) for r in spunge.runs]
    return [section(s, runs, original, None, False) for s in ("toxicity", "spunge_general")], runs, original


def test_every_suite_gives_its_first_figures(spunge) -> None:
    found = overview(*sections(spunge), None)
    assert [column.title for column in found.table.columns] == [
        "model", "toxicity: harmful rate, ToxiGen", "spunge_general: mean change", "spunge_general: worst change",
    ]  # fmt: skip
    rows = {row[0].text: row for row in found.table.rows}
    assert (rows["spunge"][1].text, rows["spunge"][3].text, rows["spunge"][3].interval) == ("0.165", "−0.205", "GSM8K")
    assert rows["original"][2].text == ""


def test_what_is_gone_is_drawn_against_what_that_cost(spunge) -> None:
    found = overview(*sections(spunge), None)
    (svg,) = found.figures.values()
    assert list(found.figures) == ["toxicity-against-spunge_general"]
    assert "<title>rmu: change −0.018 (−0.025 to −0.013), harmful rate 0.275 (0.247–0.303)</title>" in svg
    words = [e.text for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")]
    assert {"original", "rmu", "spunge"} <= set(words)


def test_one_suite_needs_no_overview(lab, spunge) -> None:
    original = read_run(lab.original, "original")
    assert overview([section("lab", [read_run(lab.runs[0])], original, None, False)], [], original, None) is None


def test_suites_that_show_what_is_gone_come_first(spunge) -> None:
    page = gather("t", [read_run(r) for r in spunge.runs], read_run(spunge.original, "original"), None, False)
    assert [s.suite for s in page.sections] == ["toxicity", "spunge_general"]


def seeded(source: Path, target: Path, seed: int, beta: float = 0.1) -> Path:
    shutil.copytree(source, target)
    origin = json.loads((target / "provenance.json").read_text())
    write_json(target / "provenance.json", origin | {"seed": seed})
    (target / "run.yaml").write_text(f"method: {{name: npo, beta: {beta}}}\ntraining:\n  steps: 60\n  seed: {seed}\n")
    manifest = json.loads((target / "artifact/expunge.json").read_text())
    manifest["method"]["beta"] = beta
    write_json(target / "artifact/expunge.json", manifest)
    return target


def test_runs_that_differ_in_their_seed_alone_are_of_one_configuration(lab, tmp_path: Path) -> None:
    sources = {"a": lab.runs[3], "b": lab.runs[4], "c": lab.runs[2]}
    folders = [seeded(source, tmp_path / name, i) for i, (name, source) in enumerate(sources.items())]
    folders += [seeded(lab.runs[3], tmp_path / "other", 9, beta=0.5), seeded(lab.runs[3], tmp_path / "again", 9, beta=0.5)]
    runs = [read_run(folder) for folder in folders]
    for run in runs[1:3]:  # the sources are of other methods
        run.artifact.method.clear()
        run.artifact.method.update(runs[0].artifact.method)
    assert [[run.name for run in group] for group in seed_groups(runs)] == [["a", "b", "c"]]  # `again` has the seed of `other`
    original, gold = read_run(lab.original, "original"), read_run(lab.gold, "gold")
    table = seed_table([section("lab", runs, original, gold, False)], runs, original, gold)
    (row,) = table.rows
    assert row[1].text == "a (seed 0), b (seed 1), c (seed 2)"
    from expunge.report import forget_effect

    values = sorted(forget_effect(run, original, gold).value for run in runs[:3])
    assert row[2].value == values[1]
    assert row[2].interval == f"{values[0]:.2f}–{values[2]:.2f}"


def test_without_a_second_seed_there_is_no_such_table(lab, tmp_path: Path) -> None:
    page = report(lab.runs, tmp_path / "out", original=lab.original, gold=lab.gold).read_text()
    assert "Over seeds" not in page
