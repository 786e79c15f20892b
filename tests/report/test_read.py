from pathlib import Path

import pytest

from expunge.errors import ExpungeError
from expunge.report import read_run, read_runs


def test_a_run_is_read_whole(lab):
    run = read_run(lab.runs[3])
    assert (run.name, run.method, run.family) == ("npo", "npo", "training")
    assert run.artifact.kind == "weights"
    assert run.provenance.counts == {"forget": 72, "retain": 2288}
    assert [s.step for s in run.steps] == list(range(1, 61))
    assert set(run.steps[0].parts) == {"forget", "retain"}
    assert run.evaluation("lab").get("facts_forget", "probability").n == 72
    assert len(run.values("lab", "facts_forget", "probability")) == 72


def test_a_model_that_was_only_evaluated_is_a_run_without_artifact(lab):
    run = read_run(lab.gold)
    assert run.artifact is None
    assert run.method is None
    assert run.steps == ()
    assert run.evaluation("lab") is not None


def test_an_evaluation_folder_without_a_run_around_it_is_read(lab):
    assert read_run(lab.gold / "evaluation", "gold").evaluation("lab") == read_run(lab.gold).evaluation("lab")


@pytest.fixture
def copy(lab, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(lab.runs[3], tmp_path / "npo"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("evaluation/lab.json", '{"suite": "lab"}'),
        ("evaluation/lab.samples.jsonl", '{"task": "a"}\n'),
        ("evaluation/lab.samples.jsonl", "[1]\n"),
        ("artifact/expunge.json", "{"),
        ("artifact/expunge.json", '{"kind": "weights", "method": {}, "family": 3}'),
        ("provenance.json", '{"seed": 1}'),
        ("metrics.jsonl", '{"loss": 1}\n{"step": 2, "loss": 1}\n'),
    ],
)
def test_a_broken_file_names_itself(copy, file, text):
    (copy / file).write_text(text)
    with pytest.raises(ExpungeError, match=r".+") as caught:
        read_run(copy)
    assert str(copy / file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_line_is_named_by_its_number(copy):
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    lines[4] = '{"step": 5, "loss'
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ExpungeError, match=r"metrics\.jsonl, line 5,"):
        read_run(copy)


def test_a_last_line_cut_off_by_a_kill_is_left_out(copy):
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"step": 61, "lo')
    assert read_run(copy).steps[-1].step == 60


def test_a_step_repeated_after_resuming_counts_once(copy):
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"step": 60, "loss": 7.5, "parts": {"forget": 7.5}}\n')
    steps = read_run(copy).steps
    assert len(steps) == 60
    assert steps[-1].loss == 7.5


def test_a_folder_that_holds_no_run_says_what_is_missing(tmp_path):
    with pytest.raises(ExpungeError, match="holds no run"):
        read_run(tmp_path)
    with pytest.raises(ExpungeError, match="is not a folder"):
        read_run(tmp_path / "nowhere")


def test_runs_of_one_name_are_told_apart_by_their_folders(lab, tmp_path):
    import shutil

    for study in ("a", "b"):
        shutil.copytree(lab.gold, tmp_path / study / "npo")
    assert [r.name for r in read_runs([tmp_path / "a/npo", tmp_path / "b/npo", lab.runs[0]])] == [
        "a/npo",
        "b/npo",
        "gradient_ascent",
    ]


def test_a_folder_of_scores_is_called_as_the_run_around_it(lab):
    assert [r.name for r in read_runs([lab.gold / "evaluation", lab.runs[0]])] == ["gold", "gradient_ascent"]
    with pytest.raises(ExpungeError, match="given twice"):
        read_runs([lab.gold / "evaluation", lab.gold])


def test_a_name_that_is_taken_is_lengthened(lab):
    assert [r.name for r in read_runs([lab.runs[0]], ["gradient_ascent"])] == ["runs/gradient_ascent"]


def test_ids_and_values_of_a_task_are_those_of_its_samples(lab):
    run = read_run(lab.gold)
    rows = [s for s in run.samples["lab"] if s.task == "strings"]
    assert run.ids("lab", "strings") == {s.id for s in rows}
    assert run.values("lab", "strings", "accuracy") == {s.id: s.value for s in rows}
    fewer = run.model_copy(update={"samples": {"lab": run.samples["lab"][:1]}})
    assert fewer.ids("lab", "strings") == set()


def test_a_probe_is_a_record_of_its_own(tmp_path):
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/analysis.json").write_text('{"model": "pico"}')
    with pytest.raises(ExpungeError, match=r"analysis\.json cannot be read as analysis"):
        read_run(tmp_path / "probe")


def test_a_run_given_twice_is_refused(lab):
    with pytest.raises(ExpungeError, match="given twice"):
        read_runs([lab.gold, lab.gold])
