"""A report over files that do not belong together says so."""

import os
import shutil
from pathlib import Path

import pytest

from expunge.records import write_json
from expunge.report import read_run
from expunge.report.checks import notices
from expunge.report.integrity import broken_up


@pytest.fixture
def npo(lab, tmp_path: Path) -> Path:
    """A run as it was written: artifact first, scores after it."""
    folder = Path(shutil.copytree(lab.runs[3], tmp_path / "npo"))
    for age, name in ((50, "artifact/expunge.json"), (20, "evaluation/lab.json")):
        stamp = (folder / name).stat().st_mtime - age
        os.utime(folder / name, (stamp, stamp))
    return folder


def test_a_run_that_is_whole_has_nothing_to_be_told(npo: Path, lab):
    assert broken_up(read_run(npo)) == []
    assert broken_up(read_run(lab.gold)) == []


def test_weights_that_were_swapped_after_the_artifact_was_written_are_named(npo: Path):
    (npo / "artifact/model.safetensors").write_bytes(b"other weights")
    (said,) = broken_up(read_run(npo))
    assert said.startswith("npo: model.safetensors was changed after the artifact was written")
    assert said in notices([read_run(npo)], None, None)


def test_scores_of_an_earlier_artifact_are_named(npo: Path):
    os.utime(npo / "artifact/expunge.json")
    assert broken_up(read_run(npo)) == ["npo: its scores of lab are older than its artifact; evaluate it again."]


def test_a_run_yaml_that_was_edited_is_named_with_the_field(npo: Path):
    (npo / "run.yaml").write_text("method: {name: npo, beta: 0.5, learning_rate: 0.0003}\n")
    assert broken_up(read_run(npo)) == [
        "npo: its run.yaml and its artifact differ in beta; one of them was edited after the run."
    ]


def test_an_unfinished_run_says_how_it_goes_on(npo: Path):
    shutil.rmtree(npo / "artifact")
    write_json(npo / "inputs.json", {})
    (said,) = broken_up(read_run(npo))
    assert said.startswith("npo is not finished: ")
    assert "--resume" in said
